//! Why a call to an agent, or an operation of it, failed.

use std::{collections::BTreeMap, error::Error as _, fmt, ops::Deref, time::Duration};

use pvelet_proto::reason;
use thiserror::Error;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, RpcStatusExt, StatusExt};

use super::guard::{ConnectionLost, DeadlineExpired, expired};
use crate::tls::TlsError;

/// A field of a request that the agent refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Its path in the request, such as `config.name`.
    pub field: String,
    /// What is wrong, with value and remedy.
    pub description: String,
}

/// Where an error comes from.
#[derive(Debug, Clone)]
pub enum Cause {
    /// There was no connection; the request was not sent.
    Connect(TlsError),
    /// The connection broke; whether the request arrived is not known.
    Lost,
    /// No answer in time; whether the request arrived is not known.
    Deadline,
    /// The agent answered with it.
    Agent,
    /// It is the end of an operation.
    Operation,
}

/// Why a call or an operation failed. `Display` is one line for people that names host, field, value and remedy.
#[derive(Debug, Clone, Error)]
pub struct AgentError(Box<Failure>);

impl Deref for AgentError {
    type Target = Failure;

    fn deref(&self) -> &Failure {
        &self.0
    }
}

/// What an [`AgentError`] holds.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The host's name.
    pub host: String,
    /// Where it comes from.
    pub cause: Cause,
    /// gRPC's code.
    pub code: Code,
    /// The `reason` of google.rpc.ErrorInfo, one of [`pvelet_proto::reason`]; `None` where the error is not the agent's.
    pub reason: Option<String>,
    /// The `metadata` of google.rpc.ErrorInfo.
    pub metadata: BTreeMap<String, String>,
    /// The field violations of google.rpc.BadRequest.
    pub fields: Vec<FieldError>,
    /// The message as it came.
    pub message: String,
}

impl AgentError {
    /// Of a call's status.
    pub fn from_status(host: &str, status: &Status) -> Self {
        let (cause, code) = match status.source() {
            Some(e) if e.is::<DeadlineExpired>() => (Cause::Deadline, Code::DeadlineExceeded),
            Some(e) if e.is::<ConnectionLost>() => (Cause::Lost, Code::Unavailable),
            Some(e) => match TlsError::find(e) {
                Some(tls) => (Cause::Connect(tls.clone()), tls_code(tls)),
                // Of a connection that broke while the answer came.
                None => (Cause::Lost, if status.code() == Code::Unknown { Code::Unavailable } else { status.code() }),
            },
            None => (Cause::Agent, status.code()),
        };
        Self::new(host, cause, code, status.message(), &status.get_error_details())
    }

    /// Of an operation that failed or was cancelled.
    pub fn from_operation(host: &str, status: &tonic_types::pb::Status) -> Self {
        Self::new(host, Cause::Operation, Code::from_i32(status.code), &status.message, &status.get_error_details())
    }

    /// There was no connection.
    pub fn from_tls(host: &str, error: &TlsError) -> Self {
        Self::new(host, Cause::Connect(error.clone()), tls_code(error), &error.to_string(), &ErrorDetails::new())
    }

    /// Something on this side keeps the host's turn from going on.
    pub fn here(host: &str, message: &str) -> Self {
        Self::new(host, Cause::Agent, Code::FailedPrecondition, message, &ErrorDetails::new())
    }

    /// No answer within the time given to a host.
    pub fn deadline(host: &str, after: Duration) -> Self {
        Self::from_status(host, &expired(after))
    }

    fn new(host: &str, cause: Cause, code: Code, message: &str, details: &ErrorDetails) -> Self {
        let info = details.error_info().filter(|i| i.domain == reason::DOMAIN);
        let violations = details.bad_request().map(|b| b.field_violations.as_slice()).unwrap_or_default();
        Self(Box::new(Failure {
            host: host.to_owned(),
            cause,
            code,
            reason: info.map(|i| i.reason.clone()),
            metadata: info.map(|i| i.metadata.clone().into_iter().collect()).unwrap_or_default(),
            fields: violations.iter().map(|v| FieldError { field: v.field.clone(), description: v.description.clone() }).collect(),
            message: message.to_owned(),
        }))
    }

    /// Whether the reason is this one.
    pub fn is(&self, reason: &str) -> bool {
        self.reason.as_deref() == Some(reason)
    }

    /// Whether the host could not be talked to: nothing is known about what it holds.
    pub fn unreachable(&self) -> bool {
        matches!(self.cause, Cause::Connect(_) | Cause::Lost | Cause::Deadline)
    }

    /// Whether the same request may succeed later without anybody doing anything.
    pub fn retryable(&self) -> bool {
        match &self.cause {
            Cause::Connect(tls) => tls_code(tls) == Code::Unavailable,
            Cause::Lost | Cause::Deadline => true,
            Cause::Agent | Cause::Operation => match self.code {
                Code::Aborted | Code::Unavailable => true,
                Code::ResourceExhausted => self.is(reason::OVERLOADED) || self.is(reason::SLOW_CONSUMER),
                _ => false,
            },
        }
    }

    /// What happened, without the host.
    pub fn text(&self) -> String {
        let mut text = self.message.trim().to_owned();
        for f in &self.fields {
            if !text.contains(f.description.as_str()) {
                text = if text.is_empty() { f.description.clone() } else { format!("{text}: {}", f.description) };
            }
            if !text.contains(f.field.as_str()) {
                text = format!("{}: {text}", f.field);
            }
        }
        if text.is_empty() {
            text = match self.code {
                Code::Unimplemented => "the agent does not offer this call; compare the versions (pveletctl version)",
                _ => "the agent gave no message",
            }
            .to_owned();
        }
        // One line, whatever the agent or PVE wrote.
        let mut line = text.split(['\n', '\r']).map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ");
        line.retain(|c| !c.is_control());
        match (&self.cause, &self.reason) {
            (Cause::Connect(_) | Cause::Lost | Cause::Deadline, _) => line,
            (_, Some(reason)) => format!("{line} [{} {reason}]", code_name(self.code)),
            (_, None) => format!("{line} [{}]", code_name(self.code)),
        }
    }
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.host, self.text())
    }
}

/// Certificates do not become right by waiting; networks may.
fn tls_code(error: &TlsError) -> Code {
    match error {
        TlsError::Server { .. } | TlsError::Refused { .. } | TlsError::File { .. } => Code::Unauthenticated,
        TlsError::Address { .. } => Code::InvalidArgument,
        TlsError::Unreachable { .. } | TlsError::Timeout { .. } | TlsError::Handshake { .. } => Code::Unavailable,
    }
}

/// A code as gRPC's documents write it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
