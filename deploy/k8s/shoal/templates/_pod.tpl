{{- define "shoal.probe" -}}
grpc: {port: {{ .port }}}
{{ toYaml .settings }}
{{- end -}}

{{/* The pod template of a role. */}}
{{- define "shoal.pod" -}}
{{- $values := index .root.Values .role -}}
{{- $ports := index (include "shoal.ports" . | fromYaml) .role -}}
metadata:
  labels:
    {{- include "shoal.selectorLabels" . | nindent 4 }}
  {{- with $values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "shoal.serviceAccountName" .root }}
  automountServiceAccountToken: false
  enableServiceLinks: false # the environment holds settings, nothing about neighbours
  terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
  securityContext:
    {{- toYaml .root.Values.podSecurityContext | nindent 4 }}
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - maxSkew: 1
      topologyKey: {{ $key }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "shoal.selectorLabels" $ | nindent 10 }}
    {{- end }}
  containers:
    - name: {{ .role }}
      image: {{ include "shoal.image" . | quote }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args: [serve, {{ .role }}]
      env:
        {{- include "shoal.env" . | nindent 8 }}
      ports:
        {{- range $name, $port := $ports }}
        - name: {{ $name }}
          containerPort: {{ int $port }}
        {{- end }}
      {{- range $kind, $settings := .root.Values.probes }}
      {{ $kind }}Probe:
        {{- include "shoal.probe" (dict "port" (int $ports.grpc) "settings" $settings) | nindent 8 }}
      {{- end }}
      {{- with $values.preStopSeconds }}
      lifecycle:
        preStop:
          sleep: {seconds: {{ . }}}
      {{- end }}
      resources:
        {{- toYaml $values.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- if or $values.cache $values.scratch }}
        - {name: cache, mountPath: /var/lib/shoal}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {sizeLimit: 1Gi}
    {{- with $values.scratch }}
    - name: cache
      emptyDir: {sizeLimit: {{ .size }}}
    {{- end }}
{{- end -}}
