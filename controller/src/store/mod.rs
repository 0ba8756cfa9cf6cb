//! Where objects live. The reconcilers know this trait only; whether a folder or Kubernetes is behind it they cannot tell.

pub mod folder;
pub mod kubernetes;

use std::{future::Future, io, path::PathBuf, sync::Arc};

use thiserror::Error;
use tokio::sync::mpsc;

use crate::kind::{Kind, Object, ObjectKey, ObjectRef, UserDataRef};

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
    /// The API server did not do what was asked, or did not answer: it may have been done.
    #[error("cannot {what}: {message}")]
    Api {
        /// What was tried, such as "write the status of PveMachine web-1".
        what: String,
        /// Why not.
        message: String,
    },
    /// An object stands there that this version cannot understand.
    #[error(
        "{about} cannot be understood: {problem}. It was probably written for another version of pvelet: upgrade the controller, or correct it"
    )]
    Unreadable {
        /// Which object.
        about: ObjectRef,
        /// What is wrong, and where.
        problem: String,
    },
}

/// Whose machines are in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tenancy {
    /// There are no owners of namespaces here: who may write manifests may name any tenant.
    Unbound,
    /// This tenant's.
    Of(String),
    /// Nobody's.
    Nobody,
    /// Several tenants claim the namespace.
    Disputed(Vec<String>),
}

/// The largest user data that agents take.
pub const USER_DATA_LARGEST: usize = 512 << 10;

/// Why user data cannot be had. `what` names the object, such as `Secret default/worker-1`. No text holds anything of the data.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UserDataError {
    /// There is no such object.
    #[error("{what} does not exist{place}; create it, or correct spec.cloudInit.userData")]
    NotFound {
        /// The object.
        what: String,
        /// Where it was looked for, with a leading blank; may be empty.
        place: String,
    },
    /// The object does not have the key.
    #[error("{what} has no key '{key}'; add it, or correct spec.cloudInit.userData")]
    NoKey {
        /// The object.
        what: String,
        /// The key.
        key: String,
    },
    /// The controller may not read it, or it is kept where everybody may.
    #[error("{what} {why}; {remedy}")]
    Forbidden {
        /// The object.
        what: String,
        /// Why not.
        why: String,
        /// What to do.
        remedy: String,
    },
    /// It is larger than [`USER_DATA_LARGEST`].
    #[error("key '{key}' of {what} has {size} bytes; at most {USER_DATA_LARGEST} are possible: have the guest fetch what is large")]
    TooLarge {
        /// The object.
        what: String,
        /// The key.
        key: String,
        /// How large it is, in bytes.
        size: u64,
    },
    /// There is nothing in it.
    #[error("key '{key}' of {what} is empty; a guest without user data has no spec.cloudInit.userData")]
    Empty {
        /// The object.
        what: String,
        /// The key.
        key: String,
    },
    /// Whoever keeps it does not answer.
    #[error("{what} cannot be read: {why}")]
    Unavailable {
        /// The object.
        what: String,
        /// Why not.
        why: String,
    },
}

impl UserDataError {
    /// All reasons.
    pub const REASONS: [&str; 6] = [
        "USER_DATA_NOT_FOUND",
        "USER_DATA_KEY_NOT_FOUND",
        "USER_DATA_FORBIDDEN",
        "USER_DATA_TOO_LARGE",
        "USER_DATA_EMPTY",
        "USER_DATA_UNAVAILABLE",
    ];

    /// A stable word, in the form of an agent's reasons.
    pub fn reason(&self) -> &'static str {
        Self::REASONS[match self {
            Self::NotFound { .. } => 0,
            Self::NoKey { .. } => 1,
            Self::Forbidden { .. } => 2,
            Self::TooLarge { .. } => 3,
            Self::Empty { .. } => 4,
            Self::Unavailable { .. } => 5,
        }]
    }
}

/// User data of the right size. `what` and `key` say whose it is.
///
/// # Errors
/// `Empty`, `TooLarge`.
pub fn user_data_of_size(what: &str, key: &str, data: Vec<u8>) -> Result<Vec<u8>, UserDataError> {
    let (what, key) = (what.to_owned(), key.to_owned());
    match data.len() {
        0 => Err(UserDataError::Empty { what, key }),
        size if size > USER_DATA_LARGEST => Err(UserDataError::TooLarge { what, key, size: size as u64 }),
        _ => Ok(data),
    }
}

tokio::task_local! {
    /// Whether what this task writes may not wait behind what others write. Unset: it may.
    pub(crate) static URGENT: bool;
}

/// Objects, watched. Implementations are shared by reference between all reconcilers.
pub trait Store: Send + Sync + 'static {
    /// All objects of a kind, by name.
    fn list<K: Kind>(&self) -> impl Future<Output = Result<Vec<Arc<Object<K>>>, StoreError>> + Send;

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

    /// Whether a machine with this uid stands there that cannot be understood: [`Store::list`] leaves it out, but what it has is not nobody's.
    fn is_unreadable(&self, uid: &str) -> bool;

    /// Whose machines are in a namespace.
    fn tenancy(&self, namespace: &str) -> Tenancy;

    /// Tells at an object that it cannot be understood ([`StoreError::Unreadable`]), where that is possible. Telling it again writes nothing.
    fn tell_unreadable(&self, about: &ObjectRef, problem: &str) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Reads user data, each time anew. It is asked for only right before the call that needs it, and kept nowhere.
    fn user_data(&self, namespace: &str, from: &UserDataRef) -> impl Future<Output = Result<Vec<u8>, UserDataError>> + Send;

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
