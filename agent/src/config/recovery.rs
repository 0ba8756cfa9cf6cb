//! What `network-recover` needs of the configuration. It must work with one that is broken or missing: a mistake in some other key must not
//! keep a host locked out.

use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::{defaults as d, parse};

/// Where a change of the network is undone from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The agent's state.
    pub state_dir: PathBuf,
    /// The folder of `interfaces.d`.
    pub etc_network: PathBuf,
    /// procfs
    pub proc: PathBuf,
    /// sysfs
    pub sysfs: PathBuf,
    /// What is wrong with the configuration, for people.
    pub warning: Option<String>,
}

/// Reads what is needed; what cannot be read has its default.
pub fn recovery(file: &Path) -> Recovery {
    let (text, missing) = match std::fs::read_to_string(file) {
        Ok(text) => (text, None),
        Err(error) => (String::new(), Some(format!("{} cannot be read ({error}): using the defaults", file.display()))),
    };
    match parse(&text) {
        Ok((config, _)) => Recovery {
            state_dir: config.state_dir,
            etc_network: config.network.etc_network,
            proc: config.pve.proc,
            sysfs: config.pve.sysfs,
            warning: None,
        },
        Err(mistakes) => {
            let (table, _) = DeTable::parse_recoverable(&text);
            let table = table.get_ref();
            let path = |section: Option<&str>, key: &str, default: &str| {
                let value = match section {
                    Some(section) => table.get(section).and_then(|s| s.get_ref().as_table()).and_then(|s| s.get(key)),
                    None => table.get(key),
                };
                value.and_then(|v| v.get_ref().as_str()).filter(|p| p.starts_with('/')).unwrap_or(default).into()
            };
            Recovery {
                state_dir: path(None, "state_dir", d::STATE_DIR),
                etc_network: path(Some("network"), "etc_network", d::ETC_NETWORK),
                proc: path(Some("pve"), "proc", d::PROC),
                sysfs: path(Some("pve"), "sysfs", d::SYSFS),
                warning: Some(missing.unwrap_or_else(|| mistakes.to_string())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_broken_or_missing_configuration_does_not_keep_a_change_from_being_undone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        let missing = recovery(&file);
        assert_eq!((missing.state_dir.to_str(), missing.etc_network.to_str()), (Some(d::STATE_DIR), Some(d::ETC_NETWORK)));
        assert!(missing.warning.unwrap().contains("cannot be read"));
        for (text, state) in [
            ("state_dir = \"/s\"\n[tls]\ntrust_domain = \"a.b\"\n", "/s"),
            // No trust domain, an unknown key, a value of the wrong kind.
            ("state_dir = \"/s\"\nlisten = 7\n[limts]\nx = 1\n", "/s"),
            ("state_dir = 7\n", d::STATE_DIR),
            ("state_dir = \"relative\"\n", d::STATE_DIR),
            ("= = =", d::STATE_DIR),
        ] {
            std::fs::write(&file, text).unwrap();
            let found = recovery(&file);
            assert_eq!(found.state_dir.to_str(), Some(state), "{text}");
            assert_eq!(found.warning.is_none(), text.contains("trust_domain"), "{text}");
        }
        std::fs::write(&file, "[network]\netc_network = \"/n\"\nconfirm_timeout = \"1s\"\n").unwrap();
        assert_eq!(recovery(&file).etc_network.to_str(), Some("/n"));
    }
}
