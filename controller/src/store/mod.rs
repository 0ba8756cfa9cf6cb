//! Where objects live. The reconcilers know this trait only; whether a folder or Kubernetes is behind it they cannot tell.

pub mod folder;

use std::{future::Future, io, path::PathBuf};

use thiserror::Error;
use tokio::sync::mpsc;

use crate::kind::{Kind, Object, ObjectKey, ObjectRef};

/// What can go wrong with the store.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Somebody changed the object since it was read: read it again and decide again.
    #[error("{0} was changed meanwhile")]
    Conflict(ObjectRef),
    /// There is no such object any more.
    #[error("{0} does not exist")]
    NotFound(ObjectRef),
    /// Another controller has the folder.
    #[error("another controller works on {0}; only one can. Stop it first, or give this one its own folder")]
    InUse(PathBuf),
    /// The folder was replaced or unmounted under the running controller: nothing may be concluded from what is missing in it.
    #[error("{0} is not the folder any more that the controller was started on; restart the controller once the right one is in place")]
    FolderLost(PathBuf),
    /// The operating system refused.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried, such as "cannot read".
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that the store itself keeps cannot be understood.
    #[error("{} is damaged: {problem}. Restore it from a backup; do not remove it while its VM exists", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Objects, watched. Implementations are shared by reference between all reconcilers.
pub trait Store: Send + Sync + 'static {
    /// All objects of a kind, by name.
    fn list<K: Kind>(&self) -> impl Future<Output = Result<Vec<Object<K>>, StoreError>> + Send;

    /// One object.
    fn get<K: Kind>(&self, key: &ObjectKey) -> impl Future<Output = Result<Option<Object<K>>, StoreError>> + Send;

    /// A stream of the objects that appeared, changed (in whatever way) or went. It begins with all that exist.
    fn watch(&self) -> mpsc::UnboundedReceiver<ObjectRef>;

    /// Writes `object.status`, and nothing else, if the object still has `object.metadata.resource_version`. Returns the object as it is then.
    /// An unchanged status writes nothing.
    fn update_status<K: Kind>(&self, object: &Object<K>) -> impl Future<Output = Result<Object<K>, StoreError>> + Send;

    /// Writes the finalizers, under the same condition. An object that is being deleted and has none left goes.
    fn set_finalizers<K: Kind>(
        &self,
        object: &Object<K>,
        finalizers: Vec<String>,
    ) -> impl Future<Output = Result<Object<K>, StoreError>> + Send;

    /// Tells people that something happened to an object.
    fn record_event(&self, about: &ObjectRef, event: Event);
}

/// Something worth telling people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Whether somebody should worry.
    pub warning: bool,
    /// A stable word in CamelCase.
    pub reason: &'static str,
    /// What happened.
    pub message: String,
}
