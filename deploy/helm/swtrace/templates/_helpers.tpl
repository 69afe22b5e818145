{{- define "swtrace.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "swtrace.fullname" -}}
{{- $name := include "swtrace.name" . -}}
{{ .Values.fullnameOverride | default (ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name)) | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "swtrace.selector" -}}
app.kubernetes.io/name: {{ include "swtrace.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "swtrace.labels" -}}
{{ include "swtrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "swtrace.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "swtrace.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "swtrace.image" -}}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- /* The daemon's container, without its name: the same in a DaemonSet and as a sidecar. */ -}}
{{- define "swtrace.daemon" -}}
{{ include "swtrace.image" . }}
{{- with .Values.extraArgs }}
args:
{{ toYaml (prepend . "daemon") | indent 2 }}
{{- end }}
env:
  - name: SWTRACE_LISTEN
    value: ":{{ .Values.port }}"
{{- with .Values.otlp }}
{{- if .endpoint }}
  - name: OTEL_EXPORTER_OTLP_ENDPOINT
    value: {{ .endpoint | quote }}
  - name: SWTRACE_TRACE_SAMPLE
    value: {{ .traceSample | quote }}
{{- with .slowStep }}
  - name: SWTRACE_SLOW_STEP
    value: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.webConfig }}
{{- if .secretName }}
  - name: SWTRACE_WEB_CONFIG
    value: /etc/swtrace/web/{{ .key }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . | indent 2 }}
{{- end }}
ports:
  - name: swtrace
    containerPort: {{ .Values.port }}
startupProbe:
{{ include "swtrace.probe" . | indent 2 }}
  periodSeconds: 2
  failureThreshold: 30
livenessProbe:
{{ include "swtrace.probe" . | indent 2 }}
  periodSeconds: 10
  timeoutSeconds: 5
securityContext:
{{ toYaml .Values.securityContext | indent 2 }}
resources:
{{ toYaml .Values.resources | indent 2 }}
volumeMounts:
  - name: swtrace-rings
    mountPath: /run/swtrace
    readOnly: true
  - name: swtrace-tmp
    mountPath: /tmp
{{- if .Values.webConfig.secretName }}
  - name: swtrace-web
    mountPath: /etc/swtrace/web
    readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . | indent 2 }}
{{- end }}
{{- end }}

{{- /* With a web configuration, /healthz may ask for a password or a certificate, which the kubelet has not. */ -}}
{{- define "swtrace.probe" -}}
{{- if .Values.webConfig.secretName -}}
tcpSocket:
  port: swtrace
{{- else -}}
httpGet:
  path: /healthz
  port: swtrace
{{- end }}
{{- end }}

{{- define "swtrace.volumes" -}}
- name: swtrace-tmp
  emptyDir:
    medium: Memory
    sizeLimit: 16Mi
{{- with .Values.webConfig.secretName }}
- name: swtrace-web
  secret:
    secretName: {{ . }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
