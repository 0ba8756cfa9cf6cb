//! How a call or a task fails: the texts of PVE, and the status they are answered with.

use std::{collections::BTreeMap, io};

/// A failed call or task.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// `die "text\n"`: answered 500; ends a task with `TASK ERROR: text`.
    #[error("{0}")]
    Died(String),
    /// Another HTTP status with a message.
    #[error("{message}")]
    Status {
        /// The HTTP status code.
        code: u16,
        /// The message of status line and body.
        message: String,
    },
    /// An answer of the HTTP server itself: the body is the bare text.
    #[error("{text}")]
    Plain {
        /// The HTTP status code.
        code: u16,
        /// Status line and body.
        text: String,
    },
    /// A message without a line end, as PVE answers for a call that it does not have: the body's message has no line end either.
    #[error("Method '{method} {path}' not implemented")]
    NotImplemented {
        /// The HTTP method.
        method: String,
        /// The path below `/api2/json`.
        path: String,
    },
    /// `400 Parameter verification failed.` with a message for each field.
    #[error("Parameter verification failed.\n{}", .0.iter().map(|(k, v)| format!("{k}: {v}")).collect::<String>())]
    Parameters(BTreeMap<String, String>),
}

impl Failure {
    /// `die "text\n"`.
    pub fn die(text: impl Into<String>) -> Self {
        Self::Died(text.into())
    }

    /// An error of one parameter.
    pub fn parameter(name: &str, message: impl Into<String>) -> Self {
        Self::Parameters(BTreeMap::from([(name.to_owned(), message.into())]))
    }

    /// As a task's last line tells it: on one line, with the HTTP status if it has one.
    pub fn in_task(&self) -> String {
        let text = match self {
            Self::Parameters(errors) => {
                let lines: String = errors.iter().map(|(key, message)| format!("{key}: {message}\n")).collect();
                format!("400 Parameter verification failed.\n{lines}")
            }
            Self::Status { code, message } => format!("{code} {message}"),
            other => other.to_string(),
        };
        // Perl takes one line end away; each other one becomes a blank.
        text.strip_suffix('\n').unwrap_or(&text).replace('\n', " ")
    }

    /// `403 Permission check failed (...)`.
    pub fn forbidden(reason: &str) -> Self {
        Self::Status { code: 403, message: format!("Permission check failed ({reason})") }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Died(os_text(&error))
    }
}

/// The text of the operating system alone, as Perl's `$!` gives it: "No such file or directory" without "(os error 2)".
pub fn os_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_owned(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_ends_on_one_line() {
        let hotplug = Failure::parameter("scsi3", "hotplug problem - still busy in guest?\n");
        assert_eq!(hotplug.in_task(), "400 Parameter verification failed. scsi3: hotplug problem - still busy in guest? ");
        assert_eq!(Failure::die("a\nb\n").in_task(), "a b");
    }
}
