{{/* Parts of network policies. */}}

{{/* The pods of "roles" as peers. */}}
{{- define "shoal.peers" -}}
{{- range .roles }}
- podSelector:
    matchLabels:
      {{- include "shoal.selectorLabels" (dict "root" $.root "role" .) | nindent 6 }}
{{- end }}
{{- end -}}

{{/* A list of numbers as TCP ports. */}}
{{- define "shoal.policyPorts" -}}
ports:
  {{- range . }}
  - {port: {{ int . }}, protocol: TCP}
  {{- end }}
{{- end -}}

{{/* Rules to the "stores", within the release or outside, and to DNS. */}}
{{- define "shoal.storeEgress" -}}
{{- $external := dict "postgres" .root.Values.networkPolicy.postgres "etcd" .root.Values.networkPolicy.etcd "s3" .root.Values.networkPolicy.objects -}}
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
{{- range .stores }}
{{- if (index $.root.Values.stores .).enabled }}
- to:
    {{- include "shoal.peers" (dict "root" $.root "roles" (list .)) | trim | nindent 4 }}
  {{- include "shoal.policyPorts" (list (index (include "shoal.storePorts" $ | fromYaml) .)) | nindent 2 }}
{{- else }}
- {{ include "shoal.policyPorts" (index $external .).ports | nindent 2 | trim }}
  {{- with (index $external .).to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}
