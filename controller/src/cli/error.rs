//! Why a command cannot go on, and with which exit status it ends.

use std::{io, path::PathBuf};

use thiserror::Error;
use tonic::Code;

use super::Exit;
use crate::{agents::AgentError, pki::PkiError, tls::TlsError};

/// Why a command ends early.
#[derive(Debug, Error)]
pub(super) enum CliError {
    /// The command line or the configuration is wrong.
    #[error("{0}")]
    Usage(String),
    /// A file cannot be used.
    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },
    /// The credentials cannot be used.
    #[error("{0}")]
    Credentials(#[from] TlsError),
    /// Something that was named does not exist.
    #[error("{0}")]
    NotFound(String),
    /// Something that was named may exist on a host that does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// A call failed.
    #[error("{0}")]
    Agent(#[from] AgentError),
    /// Certificates.
    #[error("{0}")]
    Pki(#[from] PkiError),
    /// The results cannot be written.
    #[error("the results cannot be written: {0}")]
    Output(io::Error),
}

impl CliError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) | Self::Credentials(_) | Self::File { .. } => Exit::Usage,
            Self::NotFound(_) => Exit::NotFound,
            Self::Unreachable(_) => Exit::Unreachable,
            Self::Agent(e) => of_agent(e),
            Self::Pki(PkiError::Invalid { .. } | PkiError::NoCa { .. }) => Exit::Usage,
            Self::Pki(PkiError::Unknown { .. }) => Exit::NotFound,
            Self::Pki(_) | Self::Output(_) => Exit::Failed,
        }
    }
}

/// The status for one failed call.
pub(super) fn of_agent(error: &AgentError) -> Exit {
    if error.unreachable() {
        Exit::Unreachable
    } else if error.code == Code::NotFound {
        Exit::NotFound
    } else {
        Exit::Failed
    }
}

/// The status for many answers: a mixture is partial, a common failure is named.
pub(super) fn of_many<'a>(total: usize, errors: impl IntoIterator<Item = &'a AgentError>) -> Exit {
    let exits: Vec<Exit> = errors.into_iter().map(of_agent).collect();
    match exits.as_slice() {
        [] => Exit::Ok,
        some if some.len() < total => Exit::Partial,
        [first, rest @ ..] => {
            if rest.iter().all(|e| e == first) {
                *first
            } else {
                Exit::Failed
            }
        }
    }
}
