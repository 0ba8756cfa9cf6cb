//! The kubelet's command line: its flags override its files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The flags of a running kubelet, by name without dashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Flags(BTreeMap<String, String>);

impl Flags {
    /// Flags that need no value.
    const SWITCHES: [&str; 4] = ["fail-swap-on", "rotate-certificates", "rotate-server-certificates", "fail-cgroupv1"];

    /// Reads the arguments of a process, the program first. `None`: it is no kubelet.
    pub(super) fn parse(args: &[String]) -> Option<Self> {
        let name = |at: usize| Path::new(args.get(at)?).file_name()?.to_str();
        // Some distributions have one program for all of Kubernetes.
        let rest = match (name(0), name(1)) {
            (Some("kubelet"), _) => 1,
            (_, Some("kubelet")) => 2,
            _ => return None,
        };
        let mut flags = BTreeMap::new();
        let mut args = args.iter().skip(rest).peekable();
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--") else { continue };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None if Self::SWITCHES.contains(&flag.replace('_', "-").as_str()) => (flag, "true".to_owned()),
                None => match args.next_if(|next| !next.starts_with('-')) {
                    Some(value) => (flag, value.clone()),
                    None => (flag, "true".to_owned()),
                },
            };
            // The kubelet takes both spellings, and of a flag that is given twice the last.
            flags.insert(name.replace('_', "-"), value);
        }
        Some(Self(flags))
    }

    /// A flag that is given and not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// A path; relative ones begin where systemd starts services.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        Some(Path::new("/").join(self.get(name)?))
    }

    /// A switch.
    pub(super) fn switch(&self, name: &str) -> Option<bool> {
        match self.get(name)? {
            "true" | "1" | "t" | "T" | "TRUE" | "True" => Some(true),
            "false" | "0" | "f" | "F" | "FALSE" | "False" => Some(false),
            _ => None,
        }
    }

    /// Thresholds such as `memory.available<100Mi,nodefs.available<10%`.
    pub(super) fn thresholds(&self, name: &str) -> Option<BTreeMap<String, String>> {
        let pair = |p: &str| p.split_once('<').map(|(signal, value)| (signal.trim().to_owned(), value.trim().to_owned()));
        self.0.get(name).map(|list| list.split(',').filter_map(pair).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(line: &str) -> Option<Flags> {
        Flags::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_read_in_every_spelling() {
        let line = "/usr/bin/kubelet --config=/var/lib/kubelet/config.yaml --kubeconfig /etc/k.conf -v 2 --rotate-certificates \
                    --fail_swap_on=false --node-ip=10.0.0.1 --node-ip=10.0.0.2 --hostname-override= --cert-dir pki \
                    --eviction-hard=memory.available<1Gi,nodefs.available<10% --dangling";
        let flags = parse(line).unwrap();
        assert_eq!(flags.get("config"), Some("/var/lib/kubelet/config.yaml"));
        assert_eq!(flags.path("kubeconfig"), Some("/etc/k.conf".into()));
        assert_eq!(flags.switch("rotate-certificates"), Some(true));
        assert_eq!(flags.switch("fail-swap-on"), Some(false));
        assert_eq!(flags.get("node-ip"), Some("10.0.0.2"));
        assert_eq!(flags.get("hostname-override"), None);
        assert_eq!(flags.path("cert-dir"), Some("/pki".into()));
        assert_eq!(flags.get("dangling"), Some("true"));
        let expected = [("memory.available", "1Gi"), ("nodefs.available", "10%")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(flags.thresholds("eviction-hard"), Some(expected.into()));
        assert_eq!(flags.thresholds("eviction-soft"), None);
    }

    #[test]
    fn only_kubelets_have_flags() {
        for (line, is) in [
            ("kubelet", true),
            ("/opt/bin/hyperkube kubelet --x=1", true),
            ("/snap/k8s/1/bin/kubelet --x=1", true),
            ("/usr/bin/sh -c kubelet", false),
            ("/usr/local/bin/k3s agent", false),
            ("", false),
        ] {
            assert_eq!(parse(line).is_some(), is, "{line}");
        }
        assert_eq!(Flags::parse(&[]), None);
    }
}
