//! Nodes of Kubernetes, as far as hosts that are Nodes too need them: one condition and one taint, both ours alone.

mod kubernetes;
mod version;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::mpsc;

pub use kubernetes::KubernetesNodes;
pub use version::{Minor, Skew};

/// The type of our condition. True: the host is well.
pub const CONDITION: &str = "pvelet.dev/HostHealthy";
/// The key of our taint.
pub const TAINT: &str = "pvelet.dev/unhealthy";

/// What a taint does to pods that do not tolerate it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Effect {
    /// No new pods come.
    NoSchedule,
    /// No new pods come, and those that run are evicted.
    NoExecute,
}

impl Effect {
    /// As Kubernetes writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }
}

/// Our condition on a Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCondition {
    /// "True", "False" or "Unknown".
    pub status: &'static str,
    /// A stable word in CamelCase.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// Our condition as it stands on a Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// "True", "False" or "Unknown".
    pub status: String,
    /// Its reason.
    pub reason: String,
    /// Its message.
    pub message: String,
    /// When it was written last.
    pub heartbeat: Option<Timestamp>,
}

/// What is looked at of a Node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Our condition.
    pub condition: Option<Standing>,
    /// The effects of our taint; more than one only when somebody else put one.
    pub taints: Vec<String>,
    /// The kubelet's version, such as `v1.34.2`; empty before it has told.
    pub kubelet: String,
}

/// What is known of a Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// Nothing yet, or nothing any more: why.
    Unknown(String),
    /// The API server does not let us look.
    Forbidden(String),
    /// There is no such Node.
    Absent,
    /// It is so.
    Seen(NodeView),
}

/// Why a Node could not be written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NodesError {
    /// There is no such Node.
    #[error("there is no Node {0} (any more)")]
    Absent(String),
    /// The API server does not allow it.
    #[error(
        "the API server does not allow it: {0}; set rbac.nodes=true in the chart's values, or bind the role of docs/examples/kubernetes-rbac.yaml to the controller's identity"
    )]
    Forbidden(String),
    /// Others changed the Node again and again meanwhile.
    #[error("Node {0} was changed by others each time")]
    Conflict(String),
    /// It could not be asked, or failed.
    #[error("the API server cannot be used: {0}")]
    Failed(String),
}

/// The Nodes of one Kubernetes cluster. Nothing is asked before somebody wants a Node.
#[tonic::async_trait]
pub trait Nodes: Send + Sync + 'static {
    /// What is known of a Node, from memory. The first call begins to watch.
    fn node(&self, name: &str) -> Sight;

    /// The API server's minor version, from memory.
    fn server(&self) -> Option<Minor>;

    /// The names of Nodes that changed in what is looked at; nothing: all may have. The first caller gets them.
    fn changes(&self) -> Option<mpsc::UnboundedReceiver<Option<String>>>;

    /// Writes our condition, or takes it away. Touches no other.
    ///
    /// # Errors
    /// See [`NodesError`]; but for `Absent` nothing is known to have changed.
    async fn set_condition(&self, name: &str, condition: Option<&NodeCondition>) -> Result<(), NodesError>;

    /// Makes our taint have this effect alone, or takes it away. Touches no other, and repeats where others change the Node meanwhile.
    ///
    /// # Errors
    /// See [`NodesError`]; but for `Absent` nothing is known to have changed.
    async fn set_taint(&self, name: &str, effect: Option<Effect>) -> Result<(), NodesError>;
}

#[cfg(test)]
pub(crate) mod fake;
