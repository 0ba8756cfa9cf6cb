//! Which containerd reads the files.

use toml_edit::Document;

use super::{
    declared::RUNTIME,
    text::{Text, find},
};
use crate::host::runtime::Plugin;

/// What a release makes of the files depends on this alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Generation {
    /// 1.x: files of version 1 and 2.
    One {
        /// `None`: it is not known.
        minor: Option<u32>,
    },
    /// 2.x.
    Two {
        /// The newest version of files that it knows: 3, from 2.3 on 4.
        newest: i64,
    },
}

impl std::fmt::Display for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::One { minor: Some(minor) } => write!(f, "containerd 1.{minor}"),
            Self::One { minor: None } => f.write_str("containerd 1.x"),
            Self::Two { newest: 3 } => f.write_str("containerd 2.0 to 2.2"),
            Self::Two { .. } => f.write_str("containerd 2.3 or newer"),
        }
    }
}

impl Generation {
    /// The newest version of files that it knows.
    pub(super) fn newest(self) -> i64 {
        match self {
            Self::One { .. } => 2,
            Self::Two { newest } => newest,
        }
    }

    /// From what is known, the surest first: what the daemon says of itself, its plugins, what its program has without files, the files.
    pub(super) fn of(version: Option<&str>, plugins: Option<&[Plugin]>, builtin: Option<&str>, texts: &[Text<'_>]) -> Self {
        version
            .and_then(of_version)
            .or_else(|| plugins.and_then(of_plugins))
            .or_else(|| builtin.and_then(of_builtin))
            .unwrap_or_else(|| of_files(texts))
    }

    /// Whether it need not be guessed from the files.
    pub(super) fn is_known(version: Option<&str>, plugins: Option<&[Plugin]>, builtin: Option<&str>) -> bool {
        version.and_then(of_version).or_else(|| plugins.and_then(of_plugins)).or_else(|| builtin.and_then(of_builtin)).is_some()
    }
}

/// "1.6.20~ds1", "v2.1.4-k3s1".
fn of_version(version: &str) -> Option<Generation> {
    let mut parts = version.trim_start_matches('v').split(|c: char| !c.is_ascii_digit());
    let (major, minor): (u32, Option<u32>) = (parts.next()?.parse().ok()?, parts.next().and_then(|m| m.parse().ok()));
    match (major, minor) {
        (1, minor) => Some(Generation::One { minor }),
        (2, Some(0..=2)) => Some(Generation::Two { newest: 3 }),
        (2.., _) => Some(Generation::Two { newest: 4 }),
        _ => None,
    }
}

/// Kinds of plugins that only some releases have.
fn of_plugins(plugins: &[Plugin]) -> Option<Generation> {
    let any = |start: &str| plugins.iter().any(|p| p.kind.starts_with(start));
    if any("io.containerd.server.v1") {
        Some(Generation::Two { newest: 4 })
    } else if any("io.containerd.cri.v1") || any("io.containerd.image-verifier.v1") {
        Some(Generation::Two { newest: 3 })
    } else {
        // A real daemon has dozens; a short list says nothing.
        (plugins.len() > 10).then_some(Generation::One { minor: None })
    }
}

/// By the version of the files that the program writes.
fn of_builtin(dump: &str) -> Option<Generation> {
    match Document::parse(dump).ok()?.get("version")?.as_integer()? {
        newest @ (3 | 4) => Some(Generation::Two { newest }),
        1 | 2 => Some(Generation::One { minor: None }),
        _ => None,
    }
}

/// A guess.
fn of_files(texts: &[Text<'_>]) -> Generation {
    let newest = texts.iter().filter_map(Text::version).max().unwrap_or(1);
    let new_names = texts.iter().filter_map(Text::root).any(|r| find(r, &["plugins", RUNTIME]).is_some());
    if newest >= 4 {
        Generation::Two { newest: 4 }
    } else if newest == 3 || new_names {
        Generation::Two { newest: 3 }
    } else {
        Generation::One { minor: None }
    }
}
