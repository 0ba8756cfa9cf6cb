//! The Kubernetes API: how it is reached, how long it is waited for, and what its failures mean.

use std::{path::Path, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::time::timeout;

/// How long a call may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection may be silent while an answer is awaited. Watches are told something each minute, if only a bookmark.
const SILENCE: Duration = Duration::from_secs(100);

/// A client of the cluster that a kubeconfig's current context names. Connects to nothing yet. Must be called inside a tokio runtime.
///
/// # Errors
/// The file cannot be read, or names no cluster that can be used.
pub async fn of_kubeconfig(path: &Path) -> Result<Client, String> {
    let failed = |e: &dyn std::error::Error| format!("{}: {}", path.display(), chain(e));
    let file = Kubeconfig::read_from(path).map_err(|e| failed(&e))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(|e| failed(&e))?;
    client(config).map_err(|e| failed(&e))
}

/// A client of the cluster in which this runs as a pod, with the pod's service account.
///
/// # Errors
/// It does not run in one, or its service account cannot be read.
pub fn in_cluster() -> Result<Client, String> {
    let config = Config::incluster().map_err(|e| chain(&e))?;
    client(config).map_err(|e| chain(&e))
}

fn client(mut config: Config) -> kube::Result<Client> {
    config.read_timeout = Some(SILENCE);
    Client::try_from(config)
}

/// Why a call failed.
pub(crate) enum Failure {
    /// The API server's answer, or that there was none.
    Kube(kube::Error),
    /// No answer in time: what was asked for may have been done.
    Late,
}

impl Failure {
    /// The HTTP status that was answered.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }

    /// For people, in one line.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Kube(kube::Error::Api(status)) => format!("{} ({})", status.message, status.code).replace(['\n', '\r'], " "),
            Self::Kube(e) => chain(e),
            Self::Late => format!("no answer within {} s", DEADLINE.as_secs()),
        }
    }
}

/// A call with a deadline.
pub(crate) async fn within<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failure> {
    timeout(DEADLINE, call).await.map_err(|_| Failure::Late)?.map_err(Failure::Kube)
}

/// An error with what it comes from, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(e) = next {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = e.source();
    }
    text.replace(['\n', '\r'], " ")
}
