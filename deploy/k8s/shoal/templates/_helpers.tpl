{{- define "shoal.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Short enough that a role, and the hash that a StatefulSet appends, still fit into a label. */}}
{{- define "shoal.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "shoal.serviceAccountName" -}}
{{- default (ternary (include "shoal.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{/* From here on the context is a dict: "root" and, where it matters, "role". */}}

{{- define "shoal.selectorLabels" -}}
app.kubernetes.io/name: {{ include "shoal.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .role }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- define "shoal.labels" -}}
{{ include "shoal.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: shoal
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "shoal.metadata" -}}
name: {{ include "shoal.fullname" .root }}-{{ .role }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "shoal.labels" . | nindent 2 }}
{{- end -}}

{{/* The ports that every role listens on, as the configuration has them by default. */}}
{{- define "shoal.ports" -}}
frontend: {grpc: 8800, metrics: 9800, http: 8000}
sysdb: {grpc: 8801, metrics: 9801}
logservice: {grpc: 8802, metrics: 9802}
querynode: {grpc: 8803, metrics: 9803}
compactor: {grpc: 8804, metrics: 9804}
{{- end -}}

{{- define "shoal.image" -}}
{{- $image := .root.Values.image -}}
{{- $name := printf "%s%s:%s" $image.prefix .role (default .root.Chart.AppVersion $image.tag) -}}
{{- ternary (printf "%s/%s" $image.registry $name) $name (ne $image.registry "") -}}
{{- end -}}
