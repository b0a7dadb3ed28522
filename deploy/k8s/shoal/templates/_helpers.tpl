{{- define "shoal.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Short enough that a role, and the hash that a StatefulSet appends, still fit into a label. */}}
{{- define "shoal.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* From here on the context is a dict: "root" and, where it matters, "role", which may also be a store or the migration. */}}

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

{{- define "shoal.serviceAccountName" -}}
{{- with .root.Values.serviceAccount -}}
{{- ternary (printf "%s-%s" (include "shoal.fullname" $.root) $.role) (default "default" .name) .create -}}
{{- end -}}
{{- end -}}

{{- define "shoal.image" -}}
{{- $image := .root.Values.image -}}
{{- $name := printf "%s%s:%s" $image.prefix .role (default .root.Chart.AppVersion $image.tag) -}}
{{- ternary (printf "%s/%s" $image.registry $name) $name (ne $image.registry "") -}}
{{- end -}}

{{/* What the containers of this chart may do. */}}
{{- define "shoal.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* The Secret with the certificate of a role. */}}
{{- define "shoal.tlsSecret" -}}
{{- .root.Values.tls.secretName | replace "FULLNAME" (include "shoal.fullname" .root) | replace "ROLE" .role -}}
{{- end -}}

{{/* The DNS names in it, as a YAML list. */}}
{{- define "shoal.dnsNames" -}}
{{- $name := printf "%s-%s" (include "shoal.fullname" .root) .role -}}
{{- $names := list (printf "%s.%s" .role .root.Values.tls.domain) $name (printf "%s.%s.svc" $name .root.Release.Namespace) -}}
{{- if eq .role "frontend" }}{{ $names = concat $names .root.Values.frontend.tls.dnsNames }}{{ end -}}
{{- toYaml $names -}}
{{- end -}}
