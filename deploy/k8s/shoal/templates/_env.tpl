{{/* A value as the environment spells it: whole numbers come out of YAML as floats. */}}
{{- define "shoal.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{/* What the chart decides, by the names of the configuration. Stores are named only to the roles that use them. */}}
{{- define "shoal.settings" -}}
{{- $values := .root.Values -}}
{{- $ports := index (include "shoal.ports" . | fromYaml) .role -}}
{{ .role }}.listen: "0.0.0.0:{{ $ports.grpc }}"
{{ .role }}.advertise: "$(POD_IP):{{ $ports.grpc }}"
{{ .role }}.metrics: "0.0.0.0:{{ $ports.metrics }}"
{{- with $ports.http }}
frontend.http: "0.0.0.0:{{ . }}"
{{- end }}
{{- if eq .role "frontend" }}
frontend.access.enabled: {{ $values.access.enabled }}
frontend.access.allow_unauthenticated: {{ and $values.access.allowUnauthenticated (not $values.access.enabled) }}
{{- end }}
etcd.endpoints: {{ join "," $values.etcd.endpoints | quote }}
etcd.cluster: {{ default (printf "%s.%s" .root.Release.Namespace (include "shoal.fullname" .root)) $values.etcd.cluster | quote }}
{{- if has .role (list "logservice" "querynode" "compactor") }}
{{- with $values.objects.s3 }}
objects.s3.bucket: {{ .bucket | quote }}
objects.s3.endpoint: {{ .endpoint | quote }}
objects.s3.region: {{ .region | quote }}
objects.s3.prefix: {{ .prefix | quote }}
objects.s3.allow_http: {{ .allowHttp }}
{{- end }}
{{- end }}
{{- if has .role (list "querynode" "compactor") }}
cache.directory: /var/lib/shoal/blocks
{{- end }}
{{- end -}}

{{- define "shoal.secret" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}
{{- end -}}

{{/* POD_IP comes first: only variables above may be referred to. */}}
{{- define "shoal.env" -}}
- name: POD_IP
  valueFrom:
    fieldRef: {fieldPath: status.podIP}
{{- $settings := dict -}}
{{- $own := include "shoal.settings" . | fromYaml -}}
{{- range list .root.Values.settings (index .root.Values .role).settings $own -}}
{{- range $name, $value := . }}{{ $_ := set $settings $name $value }}{{ end -}}
{{- end -}}
{{- range $name, $value := $settings }}
- name: SHOAL_{{ $name | replace "." "__" | upper }}
  value: {{ include "shoal.text" $value | quote }}
{{- end }}
{{- with .root.Values.postgres }}
{{- if has $.role (list "sysdb" "logservice") }}
{{ include "shoal.secret" (dict "name" "SHOAL_POSTGRES__DSN" "secret" .existingSecret "key" .dsnKey) }}
{{- end }}
{{- end }}
{{- with .root.Values.access }}
{{- if and .existingSecret (eq $.role "frontend") }}
{{ include "shoal.secret" (dict "name" "SHOAL_FRONTEND__ACCESS__ROOT_TOKEN" "secret" .existingSecret "key" .rootTokenKey) }}
{{- end }}
{{- end }}
{{- with .root.Values.objects.s3 }}
{{- if and .existingSecret (has $.role (list "logservice" "querynode" "compactor")) }}
{{ include "shoal.secret" (dict "name" "SHOAL_OBJECTS__S3__ACCESS_KEY" "secret" .existingSecret "key" .accessKeyKey) }}
{{ include "shoal.secret" (dict "name" "SHOAL_OBJECTS__S3__SECRET_KEY" "secret" .existingSecret "key" .secretKeyKey) }}
{{- end }}
{{- end }}
{{- end -}}
