//! The mark: the line of a VM's description by which a VM is known as ours, also when the journal is lost.
//!
//! `pvelet:v1 op=<uuid> tenant=<tenant> [cluster=<cluster>] [machine=<uid>] [uuid=<smbios uuid>]`. Without `uuid` it is not bound yet. A mark
//! whose `uuid` is not the VM's own came with a copy and says nothing about the copy.

use std::fmt;

use uuid::Uuid;

const PREFIX: &str = "pvelet:v1";

/// What a mark says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// UUID part of the name of the operation that made the VM.
    pub operation: Uuid,
    /// The owner's tenant.
    pub tenant: String,
    /// The owner's cluster; may be empty.
    pub cluster: String,
    /// UID of the owner's machine object; may be empty.
    pub machine_uid: String,
    /// The SMBIOS UUID to which the mark is bound.
    pub uuid: Option<String>,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX} op={} tenant={}", self.operation, self.tenant)?;
        if !self.cluster.is_empty() {
            write!(f, " cluster={}", self.cluster)?;
        }
        if !self.machine_uid.is_empty() {
            write!(f, " machine={}", self.machine_uid)?;
        }
        if let Some(uuid) = &self.uuid {
            write!(f, " uuid={uuid}")?;
        }
        Ok(())
    }
}

impl Mark {
    /// Reads one line; `None` when it is no mark. Unknown parts are skipped, so that later versions may add some.
    pub fn parse_line(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        if words.next()? != PREFIX {
            return None;
        }
        let (mut operation, mut tenant, mut cluster, mut machine_uid, mut uuid) = (None, None, String::new(), String::new(), None);
        for (key, value) in words.filter_map(|w| w.split_once('=')) {
            match key {
                "op" => operation = Uuid::try_parse(value).ok(),
                "tenant" => tenant = Some(value.to_owned()),
                "cluster" => value.clone_into(&mut cluster),
                "machine" => value.clone_into(&mut machine_uid),
                "uuid" => uuid = Some(value.to_ascii_lowercase()),
                _ => {}
            }
        }
        Some(Self { operation: operation?, tenant: tenant.filter(|t| !t.is_empty())?, cluster, machine_uid, uuid })
    }

    /// The mark of a description: the last line that is one.
    pub fn of(description: &str) -> Option<Self> {
        description.lines().rev().find_map(Self::parse_line)
    }

    /// The mark of a VM, if it is bound to the VM's own UUID.
    pub fn bound(description: &str, uuid: Option<&str>) -> Option<Self> {
        Self::of(description).filter(|mark| mark.uuid.is_some() && mark.uuid.as_deref() == uuid)
    }

    /// The mark of a VM as it stands while or after its operation makes it: not bound yet, or bound to the VM's own UUID.
    pub fn own(description: &str, uuid: Option<&str>) -> Option<Self> {
        Self::of(description).filter(|mark| mark.uuid.is_none() || mark.uuid.as_deref() == uuid)
    }

    /// The same mark, bound.
    pub fn bind(&self, uuid: &str) -> Self {
        Self { uuid: Some(uuid.to_ascii_lowercase()), ..self.clone() }
    }

    /// `text` with this mark as its last line.
    pub fn append_to(&self, text: &str) -> String {
        let text = strip(text);
        if text.is_empty() { self.to_string() } else { format!("{text}\n{self}") }
    }
}

/// Whether a line would be taken for a mark, of this or a later version: nobody may write one through the API.
pub fn looks_like_mark(line: &str) -> bool {
    line.trim_start().starts_with("pvelet:v")
}

/// A description without any line that is, or looks like, a mark.
pub fn strip(description: &str) -> String {
    let kept: Vec<&str> = description.lines().filter(|l| !looks_like_mark(l)).collect();
    kept.join("\n").trim_end_matches('\n').to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn any_mark() -> impl Strategy<Value = Mark> {
        (any::<u128>(), "[a-z0-9]{1,20}", "([a-z0-9.-]{1,30})?", proptest::option::of(any::<u128>()), proptest::option::of(any::<u128>()))
            .prop_map(|(op, tenant, cluster, machine, uuid)| Mark {
                operation: Uuid::from_u128(op),
                tenant,
                cluster,
                machine_uid: machine.map(|m| Uuid::from_u128(m).to_string()).unwrap_or_default(),
                uuid: uuid.map(|u| Uuid::from_u128(u).to_string()),
            })
    }

    proptest! {
        #[test]
        fn a_mark_reads_back_whatever_stands_around_it(mark in any_mark(), before in "(?s).{0,200}", after in "[ a-z\n\t]{0,40}") {
            prop_assume!(!before.lines().any(looks_like_mark));
            prop_assert_eq!(Mark::of(&mark.append_to(&before)), Some(mark.clone()));
            prop_assert_eq!(Mark::of(&format!("{}\n{after}", mark.append_to(&before))), Some(mark.clone()));
            prop_assert_eq!(Mark::of(&format!("{}\r\n", mark)), Some(mark));
        }

        #[test]
        fn a_mark_survives_pve_s_encoding(mark in any_mark(), text in "[^\r\n\u{0}]{0,60}(\n[^\r\n\u{0}]{0,60}){0,3}") {
            use crate::host::pve::config_file::ConfigFile;
            let description = mark.append_to(&text);
            let mut conf = String::new();
            for line in description.split('\n') {
                conf.push('#');
                for c in line.chars() {
                    if c.is_ascii() && c != '%' && !c.is_ascii_control() { conf.push(c) } else {
                        let mut buffer = [0; 4];
                        for b in c.encode_utf8(&mut buffer).bytes() { conf.push_str(&format!("%{b:02X}")); }
                    }
                }
                conf.push('\n');
            }
            conf.push_str("cores: 1\n");
            prop_assert_eq!(Mark::of(&ConfigFile::parse(&conf).description), Some(mark));
        }

        #[test]
        fn stripping_leaves_the_text(mark in any_mark(), text in "[a-z ]{1,20}(\n[a-z ]{1,20}){0,3}") {
            prop_assert_eq!(strip(&mark.append_to(&text)), text);
        }
    }

    #[test]
    fn a_copy_s_mark_says_nothing_about_the_copy() {
        let mark = Mark {
            operation: Uuid::from_u128(1),
            tenant: "a".into(),
            cluster: String::new(),
            machine_uid: String::new(),
            uuid: Some(Uuid::from_u128(7).to_string()),
        };
        let text = mark.to_string();
        let (own, other) = (Uuid::from_u128(7).to_string(), Uuid::from_u128(8).to_string());
        assert_eq!(Mark::bound(&text, Some(&own)), Some(mark.clone()));
        assert_eq!(Mark::bound(&text, Some(&other)), None);
        assert_eq!(Mark::own(&text, Some(&other)), None);
        assert_eq!(Mark::bound(&text, None), None);
    }

    #[test]
    fn anything_else_is_no_mark() {
        for line in [
            "",
            "pvelet:v1",
            "pvelet:v1 op=x tenant=a",
            "pvelet:v1 tenant=a",
            "xpvelet:v1 op=00000000-0000-0000-0000-000000000001 tenant=a",
        ] {
            assert_eq!(Mark::parse_line(line), None, "{line}");
        }
    }
}
