{{/* A value as the environment spells it: whole numbers come out of YAML as floats. */}}
{{- define "shoal.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{/* What the chart decides, by the names of the configuration. Stores are named only to the roles that use them. */}}
{{- define "shoal.settings" -}}
{{- $values := .root.Values -}}
{{- $ports := index (include "shoal.ports" . | fromYaml) .role -}}
{{- $uses := index (include "shoal.uses" . | fromYaml) .role -}}
{{ .role }}.listen: "0.0.0.0:{{ $ports.grpc }}"
{{ .role }}.advertise: "$(POD_IP):{{ $ports.grpc }}"
{{ .role }}.metrics: "0.0.0.0:{{ $ports.metrics }}"
{{- if eq .role "frontend" }}
frontend.http: "0.0.0.0:{{ $ports.http }}"
frontend.access.enabled: {{ $values.access.enabled }}
frontend.access.allow_unauthenticated: {{ and $values.access.allowUnauthenticated (not $values.access.enabled) }}
{{- end }}
{{- if eq .role "sysdb" }}
sysdb.migrate_at_start: {{ not (include "shoal.migrationJob" .) }}
{{- end }}
etcd.endpoints: {{ include "shoal.etcdEndpoints" . | quote }}
etcd.cluster: {{ default (printf "%s.%s" .root.Release.Namespace (include "shoal.fullname" .root)) $values.etcd.cluster | quote }}
{{- if has "s3" $uses }}
{{- with $values.objects.s3 }}
objects.s3.bucket: {{ .bucket | quote }}
objects.s3.endpoint: {{ ternary (include "shoal.s3Endpoint" $) .endpoint $values.stores.s3.enabled | quote }}
objects.s3.region: {{ .region | quote }}
objects.s3.prefix: {{ .prefix | quote }}
objects.s3.allow_http: {{ or .allowHttp $values.stores.s3.enabled }}
{{- end }}
{{- end }}
{{- if has .role (list "querynode" "compactor") }}
cache.directory: /var/lib/shoal/blocks
{{- end }}
{{- include "shoal.tlsSettings" . }}
{{- end -}}

{{- define "shoal.secret" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}
{{- end -}}

{{- define "shoal.dsn" -}}
{{- $postgres := .root.Values.postgres -}}
{{- $own := .root.Values.stores.postgres.enabled -}}
{{- $secret := ternary (include "shoal.storesSecret" .) $postgres.existingSecret $own -}}
{{ include "shoal.secret" (dict "name" "SHOAL_POSTGRES__DSN" "secret" $secret "key" (ternary "dsn" $postgres.dsnKey $own)) }}
{{- end -}}

{{- define "shoal.s3Keys" -}}
{{- $s3 := .root.Values.objects.s3 -}}
{{- $own := .root.Values.stores.s3.enabled -}}
{{- with ternary (include "shoal.storesSecret" .) $s3.existingSecret $own }}
{{ include "shoal.secret" (dict "name" "SHOAL_OBJECTS__S3__ACCESS_KEY" "secret" . "key" (ternary "accessKey" $s3.accessKeyKey $own)) }}
{{ include "shoal.secret" (dict "name" "SHOAL_OBJECTS__S3__SECRET_KEY" "secret" . "key" (ternary "secretKey" $s3.secretKeyKey $own)) }}
{{- end }}
{{- end -}}

{{/* POD_IP comes first: only variables above may be referred to. */}}
{{- define "shoal.env" -}}
- name: POD_IP
  valueFrom:
    fieldRef: {fieldPath: status.podIP}
{{- $uses := index (include "shoal.uses" . | fromYaml) .role -}}
{{- $settings := dict -}}
{{- $own := include "shoal.settings" . | fromYaml -}}
{{- range list .root.Values.settings (index .root.Values .role).settings $own -}}
{{- range $name, $value := . }}{{ $_ := set $settings $name $value }}{{ end -}}
{{- end -}}
{{- range $name, $value := $settings }}
- name: SHOAL_{{ $name | replace "." "__" | upper }}
  value: {{ include "shoal.text" $value | quote }}
{{- end }}
{{- if has "postgres" $uses }}
{{ include "shoal.dsn" . }}
{{- end }}
{{- with .root.Values.access }}
{{- if and .existingSecret (eq $.role "frontend") }}
{{ include "shoal.secret" (dict "name" "SHOAL_FRONTEND__ACCESS__ROOT_TOKEN" "secret" .existingSecret "key" .rootTokenKey) }}
{{- end }}
{{- end }}
{{- range $name, $from := (index .root.Values .role).secretEnv }}
{{ include "shoal.secret" (dict "name" $name "secret" $from.secret "key" $from.key) }}
{{- end }}
{{- if has "s3" $uses }}
{{- include "shoal.s3Keys" . }}
{{- end }}
{{- end -}}
