//! containerd's configuration: what is wrong with it, where that stands, and how it is mended.
//!
//! Two things are looked at: what the running daemon has (CRI `Status`), and what its files say, as this containerd reads them. What it has is
//! what counts; the files explain where that comes from, and what comes at its next start. All of it is pure but `source`.

mod declared;
mod edit;
mod generation;
mod judge;
mod mend;
mod source;
#[cfg(test)]
mod tests;
mod text;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

pub use mend::{Mended, mend};
pub use source::{ConfigSource, KubeletLook};

use self::{
    declared::Declared,
    generation::Generation,
    text::{Place, Text},
    view::View,
};
use super::super::{
    check::{Check, Finding, Group, Mend, State},
    kubelet::facts::KubeletFacts,
};
use crate::{
    error::Trouble,
    host::runtime::{ConfigText, Plugin, RuntimeStatus},
};

const fn check(id: &'static str, why: &'static str) -> Check {
    Check { id, group: Group::Containerd, why }
}

/// The checks of the configuration.
pub const CHECKS: [Check; 10] = [
    check("containerd.config-syntax", "With a file that it does not take containerd does not start again."),
    check("containerd.config-version", "Sections whose names do not fit the version of the file are ignored without a word."),
    check("containerd.cri-disabled", "Without its CRI plugin containerd runs no pods."),
    check("containerd.runtime-type", "No pod starts with a default runtime that is not declared or has no type."),
    check("containerd.cgroup-keys", "With the old cgroup key containerd 1.x does not load its CRI plugin, and 2.x ignores it."),
    check("containerd.cgroup-driver", "With two managers of cgroups limits of pods do not hold, or no pod starts."),
    check("containerd.sandbox-image", "Every pod begins with a container of this image."),
    check("containerd.snapshotter", "Without its snapshotter containerd unpacks no image."),
    check("containerd.cni", "Without CNI's configuration and plugins no pod gets a network."),
    check("containerd.socket-path", "The kubelet reaches containerd over this socket alone."),
];

/// What CRI said of itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Cri {
    /// It answered.
    Up(Box<RuntimeStatus>),
    /// containerd runs without its CRI plugin.
    NotLoaded,
    /// containerd does not run; why that is thought.
    Down(String),
    /// It cannot be told: no answer in time, no permission, garbage.
    Unclear(String),
}

/// A folder and the names in it: `None`: there is no such folder. An error: it cannot be read, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    /// What is in it.
    pub names: Result<Option<Vec<String>>, String>,
}

/// What the configuration is judged by.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Where the main file is, or would be.
    pub main: PathBuf,
    /// The files, the main one first; an error: why they cannot be read. `Missing`: one that is imported, and without which containerd does not
    /// start.
    pub files: Result<Vec<ConfigText>, (Trouble, String)>,
    /// What CRI says.
    pub cri: Cri,
    /// The release of the running daemon.
    pub version: Option<String>,
    /// Plugins of the running daemon.
    pub plugins: Option<Vec<Plugin>>,
    /// What containerd writes as its configuration when there is no file, where that had to be asked.
    pub builtin: Option<String>,
    /// Why containerd does not take the main file, where that was asked; empty: it takes it.
    pub refusal: Option<String>,
    /// Whether containerd's program was found to be missing: what is left of its files is nobody's.
    pub removed: bool,
    /// The kubelet. `None`: there is none on this host.
    pub kubelet: Option<KubeletFacts>,
    /// Whether the host is said to be a worker, so that a missing kubelet excuses nothing.
    pub worker: bool,
    /// The socket over which the agent asks.
    pub socket: PathBuf,
    /// containerd's unit.
    pub unit: String,
    /// The sandbox image of [`Wanted`], and whether it is here. `None`: it could not be asked.
    pub sandbox_image: Option<(String, bool)>,
    /// Where CNI's configuration is.
    pub cni_conf: Option<Folder>,
    /// Where CNI's plugins are.
    pub cni_bin: Vec<Folder>,
    /// Where paths of [`Wanted::sockets`] lead, those that lead elsewhere.
    pub links: BTreeMap<PathBuf, PathBuf>,
}

/// What must be looked at before the configuration can be judged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Whether it is here.
    pub sandbox_image: Option<String>,
    /// What is in it.
    pub cni_conf: Option<PathBuf>,
    /// What is in them.
    pub cni_bin: Vec<PathBuf>,
    /// Whether they lead to the same.
    pub sockets: BTreeSet<PathBuf>,
    /// Whether what containerd has without files is needed.
    pub builtin: bool,
}

/// Judges the configuration: one finding for each of [`CHECKS`].
pub fn analyse(facts: &Facts) -> Vec<Finding> {
    with_scene(facts, |scene| {
        if let Some(why) = scene.absent() {
            return CHECKS.iter().map(|c| Finding::not_applicable(c.id, why.clone())).collect();
        }
        judge::all(scene)
    })
}

/// What else must be looked at, from what is known so far.
pub fn wanted(facts: &Facts) -> Wanted {
    with_scene(facts, |scene| {
        let view = scene.now.as_ref().or(scene.next.as_ref());
        let path = |p: &String| Some(PathBuf::from(p)).filter(|_| !p.is_empty());
        Wanted {
            sandbox_image: view.and_then(|v| v.sandbox_image.clone()).filter(|i| !i.is_empty()),
            cni_conf: view.and_then(|v| path(&v.cni_conf)),
            cni_bin: view.map(|v| v.cni_bin.iter().filter_map(path).collect()).unwrap_or_default(),
            sockets: judge::to_compare(scene),
            builtin: facts.builtin.is_none() && (scene.guessed || scene.now.is_none() || view.is_some_and(|v| v.sandbox_image.is_none())),
        }
    })
}

/// What is looked at, put together.
struct Scene<'a> {
    facts: &'a Facts,
    texts: &'a [Text<'a>],
    /// `None`: the files cannot be read, or one is no TOML.
    declared: Option<Declared<'a>>,
    generation: Generation,
    /// Whether the generation was guessed from the files.
    guessed: bool,
    /// What the daemon has. `None`: it does not tell.
    now: Option<View>,
    /// What it would have after a start. `None`: as `declared`.
    next: Option<View>,
}

fn with_scene<T>(facts: &Facts, run: impl FnOnce(&Scene<'_>) -> T) -> T {
    let texts: Vec<Text<'_>> = facts.files.as_deref().unwrap_or_default().iter().map(Text::parse).collect();
    let (version, plugins, builtin) = (facts.version.as_deref(), facts.plugins.as_deref(), facts.builtin.as_deref());
    let generation = Generation::of(version, plugins, builtin, &texts);
    let declared = if facts.files.is_ok() { Declared::new(&texts, generation) } else { None };
    let next = declared.as_ref().map(|d| d.view(builtin));
    let mut now = match &facts.cri {
        Cri::Up(status) => View::told(&status.config),
        _ => None,
    };
    if let (Some(now), Some(next)) = (&mut now, &next) {
        // 2.x tells nothing of images, and nothing of a key that it ignores.
        now.snapshotter = now.snapshotter.take().or_else(|| next.snapshotter.clone());
        now.sandbox_image = now.sandbox_image.take().or_else(|| next.sandbox_image.clone());
        now.systemd_cgroup |= matches!(generation, Generation::Two { .. }) && next.systemd_cgroup;
    }
    let guessed = !Generation::is_known(version, plugins, builtin);
    run(&Scene { facts, texts: &texts, declared, generation, guessed, now, next })
}

/// Sockets of other runtimes, by the ends of their names.
const OTHERS: [(&str, &str); 3] = [("crio.sock", "CRI-O"), ("cri-dockerd.sock", "cri-dockerd"), ("dockershim.sock", "dockershim")];

/// Says so where a kubelet has another runtime than containerd.
pub(super) fn other_runtime(kubelet: &KubeletFacts) -> Option<String> {
    let endpoint = kubelet.runtime_endpoint.as_deref()?;
    let (_, name) = OTHERS.iter().find(|(end, _)| endpoint.ends_with(end))?;
    Some(format!("the kubelet's runtime is {name} ({endpoint})"))
}

impl Scene<'_> {
    /// Why nothing of containerd is on this host.
    fn absent(&self) -> Option<String> {
        let nothing = matches!(&self.facts.files, Ok(files) if files.is_empty());
        match &self.facts.cri {
            Cri::Down(_) if nothing || self.facts.removed => {
                let why = self.unneeded()?;
                let (main, socket) = (self.facts.main.display(), self.facts.socket.display());
                let left = if nothing { format!("neither {main} nor {socket}") } else { format!("only {main} is left of it") };
                Some(format!("no containerd here: {left}; {why}"))
            }
            _ => None,
        }
    }

    /// Why no kubelet of this host needs containerd.
    fn unneeded(&self) -> Option<String> {
        if let Some(why) = self.facts.kubelet.as_ref().and_then(other_runtime) {
            return Some(why);
        }
        (self.facts.kubelet.is_none() && !self.facts.worker).then(|| "no kubelet here needs it".to_owned())
    }

    /// Whether a daemon runs, as far as is known.
    fn runs(&self) -> bool {
        matches!(self.facts.cri, Cri::Up(_) | Cri::NotLoaded) || self.facts.plugins.is_some()
    }

    /// Where a root's key, or else the main file, is.
    fn main(&self) -> String {
        self.facts.main.display().to_string()
    }
}

/// A fault of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    state: State,
    seen: String,
    remedy: String,
    /// What in the files is to be changed.
    place: Option<Place>,
    /// Whether [`mend`] can.
    mendable: bool,
}

impl Fault {
    fn failed(seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Failed, seen: seen.into(), remedy: remedy.into(), place: None, mendable: false }
    }

    fn degraded(seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Degraded, ..Self::failed(seen, remedy) }
    }

    fn at(mut self, place: Option<Place>) -> Self {
        self.place = place;
        self
    }

    fn mendable(mut self) -> Self {
        self.mendable = true;
        self
    }

    /// With a place in the text.
    fn placed(&self, scene: &Scene<'_>) -> String {
        match &self.place {
            Some(place) => format!("{} ({place})", self.seen),
            None if scene.texts.is_empty() => format!("{} (there is no {}: built-in)", self.seen, scene.main()),
            None => format!("{} (no file sets it: built-in)", self.seen),
        }
    }

    fn finding(&self, id: &'static str, state: State, seen: String, scene: &Scene<'_>) -> Finding {
        let path = self.place.as_ref().and_then(|p| scene.texts.get(p.file)).map_or(scene.main(), |t| t.path.display().to_string());
        let finding = Finding { remedy: self.remedy.clone(), ..Finding::new(id, state, seen) }.about(path);
        // A file that is not there yet is nobody's to be edited.
        if self.mendable && !scene.texts.is_empty() { finding.mended_by(Mend::ContainerdConfig) } else { finding }
    }
}

/// What a view is judged to be: well, with what was seen, or not.
type Verdict = Result<String, Fault>;

impl Scene<'_> {
    /// A finding from what is now and what comes.
    fn told(&self, id: &'static str, judge: impl Fn(&View) -> Verdict) -> Finding {
        match (self.now.as_ref().map(&judge), self.next.as_ref().map(&judge)) {
            (Some(Err(now)), Some(Err(next))) => next.finding(id, now.state, Fault { seen: now.seen, ..next.clone() }.placed(self), self),
            (Some(Err(now)), Some(Ok(_))) => {
                let seen = format!("{}; its files no longer say so, which is not yet in force", now.seen);
                let finding = Finding { remedy: format!("systemctl restart {}", self.facts.unit), ..Finding::new(id, now.state, seen) };
                finding.about(self.facts.unit.clone()).mended_by(Mend::RestartUnit(self.facts.unit.clone()))
            }
            (Some(Err(now)), None) => {
                Finding { remedy: now.remedy, ..Finding::new(id, now.state, format!("{} ({})", now.seen, self.unread())) }
            }
            (Some(Ok(_)), Some(Err(next))) => {
                let seen = format!("not yet in force, but from containerd's next start on: {}", next.placed(self));
                next.finding(id, State::Degraded, seen, self)
            }
            (Some(Ok(seen)), _) => Finding::ok(id, seen),
            (None, Some(Err(next))) => next.finding(id, next.state, next.placed(self), self),
            (None, Some(Ok(seen))) => match &self.facts.cri {
                Cri::Unclear(why) => Finding::unknown(id, format!("what containerd has is not known ({why}); its files say: {seen}")),
                Cri::Down(_) => Finding::ok(id, format!("{seen} (as its files say; it does not run)")),
                Cri::NotLoaded => Finding::ok(id, format!("{seen} (as its files say; CRI is not loaded)")),
                Cri::Up(_) => Finding::ok(id, format!("{seen} (as its files say)")),
            },
            (None, None) => Finding::unknown(id, format!("what containerd has is not known, and {}", self.unread())),
        }
    }

    /// Why nothing is known of the files.
    fn unread(&self) -> String {
        match &self.facts.files {
            Err((Trouble::Missing, _)) => "its files are not all there, see containerd.config-syntax".to_owned(),
            Err((_, why)) => format!("its files cannot be read: {why}"),
            Ok(_) => "its files cannot be parsed, see containerd.config-syntax".to_owned(),
        }
    }
}
