//! Versions of Kubernetes, and how far a kubelet's may be from the API server's.

use std::fmt;

/// How many minors older than the API server a kubelet may be.
const OLDER: u32 = 3;
/// Kubelets before this one may be one minor less older.
const LONGER_SINCE: Minor = Minor { major: 1, minor: 25 };

/// Major and minor version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Minor {
    /// 1.
    pub major: u32,
    /// Such as 34.
    pub minor: u32,
}

impl Minor {
    /// Reads `v1.34.2`, `1.34`, `v1.33.5+k3s1`, `v1.35.0-rc.1`; nothing where it is no version.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().trim_start_matches('v').split('.');
        let major = parts.next()?.parse().ok()?;
        // Some vendors write `34+`.
        let minor = parts.next()?;
        let digits = minor.find(|c: char| !c.is_ascii_digit()).map_or(minor, |end| &minor[..end]);
        Some(Self { major, minor: digits.parse().ok()? })
    }
}

impl fmt::Display for Minor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// How a kubelet's version stands to the API server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skew {
    /// As Kubernetes supports it.
    Supported,
    /// The kubelet is newer than the API server: never supported.
    Newer,
    /// The kubelet is so many minors older at most; this one is older.
    TooOld {
        /// How many minors older it may be.
        allowed: u32,
    },
}

impl Skew {
    /// By Kubernetes' policy: never newer, and up to three minors older; two where the kubelet is older than 1.25.
    pub fn of(kubelet: Minor, server: Minor) -> Self {
        let allowed = if kubelet < LONGER_SINCE { OLDER - 1 } else { OLDER };
        if kubelet > server {
            Self::Newer
        } else if kubelet.major != server.major || server.minor - kubelet.minor > allowed {
            Self::TooOld { allowed }
        } else {
            Self::Supported
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn versions_are_read_as_distributions_write_them() {
        for (text, want) in [
            ("v1.34.2", Some((1, 34))),
            ("1.34", Some((1, 34))),
            ("v1.33.5+k3s1", Some((1, 33))),
            ("v1.35.0-rc.1", Some((1, 35))),
            ("1.27+", Some((1, 27))),
            ("v1", None),
            ("", None),
            ("vanilla.1", None),
        ] {
            assert_eq!(Minor::parse(text).map(|v| (v.major, v.minor)), want, "{text}");
        }
    }

    #[test]
    fn a_kubelet_is_never_newer_and_three_minors_older_at_most() {
        for (kubelet, server, want) in [
            ("v1.34.9", "v1.34.0", Skew::Supported),
            ("v1.31.0", "v1.34.0", Skew::Supported),
            ("v1.30.9", "v1.34.0", Skew::TooOld { allowed: 3 }),
            ("v1.35.0", "v1.34.9", Skew::Newer),
            ("v1.24.0", "v1.26.0", Skew::Supported),
            ("v1.24.0", "v1.27.0", Skew::TooOld { allowed: 2 }),
            ("v1.25.0", "v1.28.0", Skew::Supported),
            ("v1.34.0", "v2.0.0", Skew::TooOld { allowed: 3 }),
        ] {
            assert_eq!(Skew::of(Minor::parse(kubelet).unwrap(), Minor::parse(server).unwrap()), want, "{kubelet} {server}");
        }
    }
}
