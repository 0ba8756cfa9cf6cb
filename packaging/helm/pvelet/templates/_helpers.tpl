{{- define "pvelet.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "pvelet.selector" -}}
app.kubernetes.io/name: pvelet
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end -}}

{{- define "pvelet.labels" -}}
{{ include "pvelet.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "pvelet.serviceAccount" -}}
{{- default (ternary (include "pvelet.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "pvelet.secret" -}}
{{- default (printf "%s-credentials" (include "pvelet.fullname" .)) .Values.credentials.secretName -}}
{{- end -}}

{{/* The subject that roles are bound to. */}}
{{- define "pvelet.subjects" -}}
- kind: ServiceAccount
  name: {{ include "pvelet.serviceAccount" . }}
  namespace: {{ .Release.Namespace }}
{{- end -}}

{{/* Ports of a NetworkPolicy's rule: (dict "ports" [...] "protocols" [...]). */}}
{{- define "pvelet.ports" -}}
{{- range $port := .ports }}
{{- range $protocol := $.protocols }}
- port: {{ $port }}
  protocol: {{ $protocol }}
{{- end }}
{{- end }}
{{- end -}}
