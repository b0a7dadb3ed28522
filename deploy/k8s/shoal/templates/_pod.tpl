{{/* The kubelet's gRPC probes know no TLS: with it they are pages of the metrics port, which say the same. */}}
{{- define "shoal.probe" -}}
{{- $tls := .root.Values.tls -}}
{{- if $tls.enabled -}}
httpGet:
  path: {{ ternary "/live" "/ready" (eq .kind "liveness") }}
  port: metrics
  scheme: {{ ternary "HTTPS" "HTTP" (eq $tls.metrics "tls") }}
{{- else -}}
grpc: {port: {{ .port }}}
{{- end }}
{{ toYaml .settings }}
{{- end -}}

{{/* What the pods of roles and of the migration have in common. */}}
{{- define "shoal.podCommon" -}}
automountServiceAccountToken: false
enableServiceLinks: false # the environment holds settings, nothing about neighbours
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Where the pods of a role run. */}}
{{- define "shoal.placement" -}}
{{- $values := index .root.Values .role -}}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "shoal.selectorLabels" $ | nindent 8 }}
  {{- end }}
{{- end -}}

{{- define "shoal.container" -}}
{{- $values := index .root.Values .role -}}
{{- $ports := index (include "shoal.ports" . | fromYaml) .role -}}
- name: {{ .role }}
  image: {{ include "shoal.image" . | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args: [serve, {{ .role }}]
  env:
    {{- include "shoal.env" . | nindent 4 }}
  ports:
    {{- range $name, $port := $ports }}
    - name: {{ $name }}
      containerPort: {{ int $port }}
    {{- end }}
  {{- range $kind, $settings := .root.Values.probes }}
  {{ $kind }}Probe:
    {{- include "shoal.probe" (dict "root" $.root "kind" $kind "port" (int $ports.grpc) "settings" $settings) | nindent 4 }}
  {{- end }}
  {{- with $values.preStopSeconds }}
  lifecycle:
    preStop:
      sleep: {seconds: {{ . }}}
  {{- end }}
  resources:
    {{- toYaml $values.resources | nindent 4 }}
  securityContext:
    {{- include "shoal.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    {{- if or $values.cache $values.scratch }}
    - {name: cache, mountPath: /var/lib/shoal}
    {{- end }}
    {{- with include "shoal.certificateMounts" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* The pod template of a role. */}}
{{- define "shoal.pod" -}}
{{- $values := index .root.Values .role -}}
metadata:
  labels:
    {{- include "shoal.selectorLabels" . | nindent 4 }}
  {{- with $values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "shoal.serviceAccountName" . }}
  {{- include "shoal.podCommon" . | nindent 2 }}
  terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
  {{- include "shoal.placement" . | nindent 2 }}
  containers:
    {{- include "shoal.container" . | nindent 4 }}
  volumes:
    - name: tmp
      emptyDir: {sizeLimit: 1Gi}
    {{- with $values.scratch }}
    - name: cache
      emptyDir: {sizeLimit: {{ .size }}}
    {{- end }}
    {{- with include "shoal.certificateVolumes" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end -}}
