{{/* What is particular to each store: its user, and its container but for what all of them have. */}}

{{- define "shoal.storeUsers" -}}
postgres: 999
etcd: 10001
s3: 1000
{{- end -}}

{{- define "shoal.store.postgres" -}}
env:
  - {name: POSTGRES_USER, value: shoal}
  - {name: POSTGRES_DB, value: shoal}
  - {name: POSTGRES_INITDB_ARGS, value: "--data-checksums --auth-host=scram-sha-256"}
{{ include "shoal.secret" (dict "name" "POSTGRES_PASSWORD" "secret" (include "shoal.storesSecret" .) "key" "password") | indent 2 }}
readinessProbe:
  exec:
    command: [pg_isready, --host=127.0.0.1, --username=shoal, --dbname=shoal]
  periodSeconds: 2
volumeMounts:
  - {name: data, mountPath: /var/lib/postgresql}
  - {name: tmp, mountPath: /tmp}
  - {name: tmp, mountPath: /var/run/postgresql, subPath: run}
{{- end -}}

{{- define "shoal.store.etcd" -}}
command: [/usr/local/bin/etcd]
args:
  - --name=shoal
  - --data-dir=/var/lib/etcd/data
  - --listen-client-urls=http://0.0.0.0:2379
  - --advertise-client-urls=http://{{ include "shoal.etcdEndpoints" . }}
  - --listen-peer-urls=http://127.0.0.1:2380
  - --initial-advertise-peer-urls=http://127.0.0.1:2380
  - --initial-cluster=shoal=http://127.0.0.1:2380
  - --auto-compaction-mode=revision
  - --auto-compaction-retention=1000
readinessProbe:
  httpGet: {path: /health, port: store}
  periodSeconds: 2
volumeMounts:
  - {name: data, mountPath: /var/lib/etcd}
  - {name: tmp, mountPath: /tmp}
{{- end -}}

{{/*
Names and sizes lie in SQLite, which syncs each commit; the rule that files are synced too is written to the filer after each start,
and the pod is not ready before. Only S3, which asks for keys, listens beyond loopback.
*/}}
{{- define "shoal.store.s3" -}}
command: [weed, -logtostderr=true, server]
workingDir: /etc/seaweedfs # where it looks for its settings
args:
  - -dir=/data
  - -ip=127.0.0.1
  - -ip.bind=127.0.0.1
  - -master.telemetry=false
  - -master.electionTimeout=1s
  - -master.volumeSizeLimitMB=1024
  - -volume.max=10000
  - -volume.minFreeSpace=1
  - -volume.preStopSeconds=0
  - -filer=true
  - -filer.maxMB=8
  - -filer.saveToFilerLimit=1024
  - -filer.localSocket=/tmp/filer.sock
  - -s3=true
  - -s3.ip.bind=0.0.0.0
  - -s3.port=8333
  - -s3.port.iceberg=0
  - -s3.port.lance=0
  - -s3.config=/etc/shoal/s3/s3.json
  - -s3.localSocket=/tmp/s3.sock
  - -s3.autoCreateBucket=false
lifecycle:
  postStart:
    exec:
      command:
        - sh
        - -c
        - until curl --fail --silent --upload-file /etc/seaweedfs/rules.json http://127.0.0.1:8888/etc/seaweedfs/filer.conf; do sleep 1; done
readinessProbe:
  httpGet: {path: /healthz, port: store}
  periodSeconds: 2
volumeMounts:
  - {name: data, mountPath: /data}
  - {name: tmp, mountPath: /tmp}
  - {name: settings, mountPath: /etc/seaweedfs, readOnly: true}
  - {name: keys, mountPath: /etc/shoal/s3, readOnly: true}
{{- end -}}

{{- define "shoal.store.s3.volumes" -}}
- name: settings
  configMap:
    name: {{ include "shoal.fullname" .root }}-s3
- name: keys
  secret:
    secretName: {{ include "shoal.storesSecret" . }}
    defaultMode: 0440
    items:
      - {key: s3.json, path: s3.json}
{{- end -}}
