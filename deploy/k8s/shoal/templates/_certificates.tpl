{{/* Certificates, as files that Shoal reads again when they change: volumes and not variables. */}}

{{/* Folder below /etc/shoal → Secret and keys, for what a role (or the migration) mounts. */}}
{{- define "shoal.certificates" -}}
{{- $values := .root.Values -}}
{{- $uses := index (include "shoal.uses" . | fromYaml) .role -}}
{{- $pair := list "tls.crt" "tls.key" -}}
{{- $found := dict -}}
{{- if and $values.tls.enabled (ne .role "migrate") -}}
{{- $_ := set $found "tls" (dict "secret" (include "shoal.tlsSecret" .) "keys" (append $pair "ca.crt")) -}}
{{- if eq .role "frontend" -}}
{{- with $values.frontend.tls.existingSecret }}{{ $_ := set $found "public" (dict "secret" . "keys" $pair) }}{{ end -}}
{{- with $values.frontend.tls.clientCaSecret }}{{ $_ := set $found "callers" (dict "secret" . "keys" (list "ca.crt")) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if and (has "postgres" $uses) (not $values.stores.postgres.enabled) -}}
{{- with $values.postgres.caSecret }}{{ $_ := set $found "postgres" (dict "secret" . "keys" (list "ca.crt")) }}{{ end -}}
{{- end -}}
{{- if and (has "etcd" $uses) (not $values.stores.etcd.enabled) $values.etcd.tlsSecret -}}
{{- $keys := ternary (append $pair "ca.crt") (list "ca.crt") $values.etcd.clientCertificate -}}
{{- $_ := set $found "etcd" (dict "secret" $values.etcd.tlsSecret "keys" $keys) -}}
{{- end -}}
{{- if and (has "s3" $uses) (not $values.stores.s3.enabled) -}}
{{- with $values.objects.s3.caSecret }}{{ $_ := set $found "objects" (dict "secret" . "keys" (list "ca.crt")) }}{{ end -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{- define "shoal.tlsSettings" -}}
{{- $values := .root.Values -}}
{{- with $values.frontend.tls -}}
{{- if and (not $values.tls.enabled) (or .existingSecret .clientCaSecret (ne .clientCertificates "none")) -}}
{{- fail "frontend.tls needs tls.enabled: else callers would get plain text" -}}
{{- end -}}
{{- if and .clientCaSecret (eq .clientCertificates "none") -}}
{{- fail "frontend.tls.clientCaSecret is for frontend.tls.clientCertificates: required" -}}
{{- end -}}
{{- end -}}
{{- $found := include "shoal.certificates" . | fromYaml -}}
{{- if $found.tls }}
tls.cert_file: /etc/shoal/tls/tls.crt
tls.key_file: /etc/shoal/tls/tls.key
tls.ca_file: /etc/shoal/tls/ca.crt
tls.domain: {{ $values.tls.domain }}
tls.metrics: {{ $values.tls.metrics }}
{{- if eq .role "frontend" }}
frontend.tls.client_certificates: {{ $values.frontend.tls.clientCertificates }}
{{- end }}
{{- end }}
{{- if $found.public }}
frontend.tls.cert_file: /etc/shoal/public/tls.crt
frontend.tls.key_file: /etc/shoal/public/tls.key
{{- end }}
{{- if $found.callers }}
frontend.tls.client_ca_file: /etc/shoal/callers/ca.crt
{{- end }}
{{- with $found.etcd }}
etcd.ca_file: /etc/shoal/etcd/ca.crt
{{- if has "tls.crt" .keys }}
etcd.cert_file: /etc/shoal/etcd/tls.crt
etcd.key_file: /etc/shoal/etcd/tls.key
{{- end }}
{{- end }}
{{- if $found.objects }}
objects.s3.ca_file: /etc/shoal/objects/ca.crt
{{- end }}
{{- end -}}

{{- define "shoal.certificateMounts" -}}
{{- range $name, $_ := include "shoal.certificates" . | fromYaml }}
- {name: cert-{{ $name }}, mountPath: /etc/shoal/{{ $name }}, readOnly: true}
{{- end }}
{{- end -}}

{{- define "shoal.certificateVolumes" -}}
{{- range $name, $found := include "shoal.certificates" . | fromYaml }}
- name: cert-{{ $name }}
  secret:
    secretName: {{ $found.secret }}
    defaultMode: 0440
    items:
      {{- range $found.keys }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end }}
{{- end -}}
