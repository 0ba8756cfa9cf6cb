//! Mistakes in a manifest: where, what, and what would be right.

use std::fmt;

use pvelet_proto::id::InvalidId;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Path below the document, such as `spec.nics[0].vlan`.
    pub path: String,
    /// The value given, cut to 128 characters; empty when the field is missing.
    pub value: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl FieldError {
    /// A mistake at `path`.
    pub fn new(path: impl Into<String>, value: impl fmt::Display, problem: impl Into<String>) -> Self {
        Self { path: path.into(), value: value.to_string().chars().take(128).collect(), problem: problem.into() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.path.as_str(), self.value.as_str()) {
            ("", _) => f.write_str(&self.problem),
            (path, "") => write!(f, "{path}: {}", self.problem),
            (path, value) => write!(f, "{path} = {value}: {}", self.problem),
        }
    }
}

/// Collects mistakes.
#[derive(Debug, Default)]
pub(super) struct Checker(Vec<FieldError>);

impl Checker {
    pub(super) fn id<T>(&mut self, path: &str, result: Result<T, InvalidId>) {
        if let Err(e) = result {
            self.0.push(FieldError::new(path, &e.value, format!("not {}: {}", e.kind, e.rule)));
        }
    }

    pub(super) fn require(&mut self, ok: bool, path: &str, value: impl fmt::Display, problem: &str) {
        if !ok {
            self.0.push(FieldError::new(path, value, problem));
        }
    }

    pub(super) fn done(self) -> Vec<FieldError> {
        self.0
    }
}
