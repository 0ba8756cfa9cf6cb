//! The label: what is written beside a volume's data, on the storage, so that its owner is known without the agent's journal.
//!
//! `pvelet:v1:<id>:<tenant>:<cluster>:<claim>`. A label whose id is not the one in the volume's name came with a copy and says nothing about
//! the copy. All characters are such that every storage can keep them (LVM's tags are the narrowest).

use std::fmt;

use pvelet_proto::{v1, volume::VolumeId};

const PREFIX: &str = "pvelet:v1:";

/// What a label says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Label {
    /// The volume.
    pub(super) id: VolumeId,
    /// The owner's tenant.
    pub(super) tenant: String,
    /// The owner's cluster; may be empty.
    pub(super) cluster: String,
    /// What it is for; may be empty.
    pub(super) claim: String,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}:{}:{}:{}", self.id, self.tenant, self.cluster, self.claim)
    }
}

impl Label {
    /// Reads a label; `None` when it is none. Later versions may add parts at the end.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix(PREFIX)?.split(':');
        let id = parts.next()?.parse().ok()?;
        let tenant = parts.next().filter(|t| !t.is_empty())?.to_owned();
        let (cluster, claim) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        Some(Self { id, tenant, cluster, claim })
    }

    /// The label of a volume by its name: one that a copy brought along does not count.
    pub(super) fn of(name: &str, text: &str) -> Option<Self> {
        let label = Self::parse(text)?;
        VolumeId::of_name(name).is_none_or(|(_, id)| id == label.id).then_some(label)
    }

    /// The owner as the API has it.
    pub(super) fn owner(&self) -> v1::VolumeOwner {
        v1::VolumeOwner { tenant: self.tenant.clone(), cluster: self.cluster.clone(), claim: self.claim.clone() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    proptest! {
        #[test]
        fn a_label_reads_back(id in 1u128.., tenant in "[a-z0-9-]{1,63}", cluster in "[a-z0-9.-]{0,63}", claim in "[A-Za-z0-9._/-]{0,253}") {
            let label = Label { id: VolumeId::new(Uuid::from_u128(id)), tenant, cluster, claim };
            let text = label.to_string();
            prop_assert_eq!(Label::parse(&text), Some(label.clone()));
            prop_assert_eq!(Label::parse(&format!("{text}:later")), Some(label));
            // What LVM's tags allow, and as long as they may be.
            prop_assert!(text.len() <= 1000 && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"_+.-/=!:&#".contains(&c)));
        }

        #[test]
        fn anything_else_is_none(text in ".{0,80}") {
            prop_assume!(!text.starts_with(PREFIX));
            prop_assert_eq!(Label::parse(&text), None);
        }
    }

    #[test]
    fn a_label_that_a_copy_brought_along_does_not_count() {
        let (own, other) = (VolumeId::new(Uuid::from_u128(1)), VolumeId::new(Uuid::from_u128(2)));
        let label = Label { id: own, tenant: "a".into(), cluster: String::new(), claim: String::new() };
        let text = label.to_string();
        assert_eq!(Label::of(&own.disk_name(100), &text), Some(label.clone()));
        assert_eq!(Label::of(&other.disk_name(100), &text), None);
        // PVE's own name says nothing of the id.
        assert_eq!(Label::of("100/vm-100-disk-1.raw", &text), Some(label));
    }
}
