//! Which leader of which installation speaks. Agents refuse the calls of an older one.

use pvelet_proto::v1::ControllerEpoch;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How often the leadership changed hands, within one lease (or one folder).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Epoch {
    /// A UUID, made once.
    pub lease_uid: String,
    /// From 1, one more with each start.
    pub transitions: u64,
}

impl Epoch {
    /// The first epoch of a new lease.
    pub fn first() -> Self {
        Self { lease_uid: Uuid::new_v4().to_string(), transitions: 1 }
    }

    /// The one after it.
    #[must_use]
    pub fn next(&self) -> Self {
        Self { lease_uid: self.lease_uid.clone(), transitions: self.transitions + 1 }
    }

    /// Reads [`Epoch::to_text`].
    pub fn parse(text: &str) -> Option<Self> {
        let epoch: Self = serde_json::from_str(text).ok()?;
        Uuid::try_parse(&epoch.lease_uid).ok()?;
        Some(epoch)
    }

    /// As it is kept.
    pub fn to_text(&self) -> String {
        format!("{{\"leaseUid\": \"{}\", \"transitions\": {}}}\n", self.lease_uid, self.transitions)
    }

    /// As it is sent, for the installation of this name.
    pub fn to_message(&self, controller: &str) -> ControllerEpoch {
        ControllerEpoch { controller: controller.to_owned(), lease_uid: self.lease_uid.clone(), transitions: self.transitions }
    }
}
