{{/* What is where and who calls whom: ports, container probes and network policies follow from it. */}}

{{/* The ports that every role listens on, as the configuration has them by default. */}}
{{- define "shoal.ports" -}}
frontend: {grpc: 8800, metrics: 9800, http: 8000}
sysdb: {grpc: 8801, metrics: 9801}
logservice: {grpc: 8802, metrics: 9802}
querynode: {grpc: 8803, metrics: 9803}
compactor: {grpc: 8804, metrics: 9804}
{{- end -}}

{{/* The roles that each role calls. */}}
{{- define "shoal.calls" -}}
frontend: [sysdb, logservice, querynode]
sysdb: []
logservice: []
querynode: [sysdb, logservice]
compactor: [sysdb, logservice]
{{- end -}}

{{/* The stores that each role uses, and the migration. */}}
{{- define "shoal.uses" -}}
frontend: [etcd]
sysdb: [etcd, postgres]
logservice: [etcd, postgres, s3]
querynode: [etcd, s3]
compactor: [etcd, s3]
migrate: [postgres]
{{- end -}}

{{/* The ports of stores within the release. */}}
{{- define "shoal.storePorts" -}}
postgres: 5432
etcd: 2379
s3: 8333
{{- end -}}

{{- define "shoal.storesSecret" -}}
{{ include "shoal.fullname" .root }}-stores
{{- end -}}

{{- define "shoal.etcdEndpoints" -}}
{{- $own := printf "%s-etcd:%v" (include "shoal.fullname" .root) (include "shoal.storePorts" . | fromYaml).etcd -}}
{{- ternary $own (join "," .root.Values.etcd.endpoints) .root.Values.stores.etcd.enabled -}}
{{- end -}}

{{- define "shoal.s3Endpoint" -}}
http://{{ include "shoal.fullname" .root }}-s3:{{ (include "shoal.storePorts" . | fromYaml).s3 }}
{{- end -}}

{{/* Not empty if a Job migrates: a hook comes before a Postgres of the release. */}}
{{- define "shoal.migrationJob" -}}
{{- if and .root.Values.migration.job (not .root.Values.stores.postgres.enabled) }}true{{ end -}}
{{- end -}}
