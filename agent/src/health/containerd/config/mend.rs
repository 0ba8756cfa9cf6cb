//! Mending: the whole edit at once, and nothing but the edit.

use std::{collections::BTreeSet, path::PathBuf};

use super::{
    super::super::{
        check::{Finding, Mend, State},
        kubelet::facts::CgroupDriver,
    },
    Cri, Facts, Scene, analyse,
    declared::{CRI, Declared, Key, RUNTIME, SHORT, Section},
    edit,
    generation::Generation,
    judge::{self, Mixup},
    view::Cgroup,
    with_scene,
};
use crate::host::runtime::ConfigText;

/// A file that is to be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    /// Which one.
    pub path: PathBuf,
    /// What it holds.
    pub was: String,
    /// What it is to hold.
    pub text: String,
    /// Ids of the checks that are mended.
    pub mends: Vec<&'static str>,
    /// Those of them of which something stays that only a person can mend: they are degraded then.
    pub partly: Vec<&'static str>,
}

/// Steps of one mending; each puts one thing right.
const STEPS: usize = 64;

/// What the files must be to be well: usually one file, none where nothing can be mended. Mending what was mended changes nothing.
///
/// A fault is mended in the file that declares it. Files that hold bytes which are no UTF-8 are not touched.
pub fn mend(facts: &Facts) -> Vec<Mended> {
    let Ok(files) = &facts.files else { return Vec::new() };
    let open = faults(facts);
    if open.is_empty() || files.iter().any(|f| f.text.contains('\u{fffd}')) {
        return Vec::new();
    }
    // What the daemon has does not matter for what its files should say.
    let mut work = Facts { cri: Cri::NotLoaded, ..facts.clone() };
    let mut steps = 0;
    while let Some((path, text)) = with_scene(&work, step) {
        steps += 1;
        let Ok(files) = &mut work.files else { return Vec::new() };
        match files.iter_mut().find(|f| f.path == path) {
            Some(file) if file.text == text => break,
            Some(file) => file.text = text,
            None => return Vec::new(),
        }
        if steps == STEPS {
            return Vec::new();
        }
    }
    let left = faults(&work);
    let mends: Vec<&'static str> = open.iter().filter(|id| !left.contains(*id)).copied().collect();
    // What comes into force by the edit may hold faults of its own: then a person has to look at it.
    let bad = |facts: &Facts| {
        judged(facts).into_iter().filter(|f| matches!(f.state, State::Degraded | State::Failed)).map(|f| f.id).collect::<BTreeSet<_>>()
    };
    if mends.is_empty() || !bad(&work).is_subset(&bad(facts)) {
        return Vec::new();
    }
    let partly: Vec<&'static str> =
        judged(&work).into_iter().filter(|f| f.state == State::Degraded && mends.contains(&f.id)).map(|f| f.id).collect();
    let changed = files.iter().zip(work.files.unwrap_or_default()).filter(|(was, now)| was.text != now.text);
    let mended = |(was, now): (&ConfigText, ConfigText)| Mended {
        path: now.path,
        was: was.text.clone(),
        text: now.text,
        mends: mends.clone(),
        partly: partly.clone(),
    };
    changed.map(mended).collect()
}

/// Checks whose faults stand in the files and can be mended.
fn faults(facts: &Facts) -> BTreeSet<&'static str> {
    judged(facts).into_iter().filter(|f| f.mend == Some(Mend::ContainerdConfig)).map(|f| f.id).collect()
}

/// The findings from the files alone.
fn judged(facts: &Facts) -> Vec<Finding> {
    analyse(&Facts { cri: Cri::NotLoaded, ..facts.clone() })
}

/// A file's path and its new text.
type Step = Option<(PathBuf, String)>;

fn step(scene: &Scene<'_>) -> Step {
    let declared = scene.declared.as_ref()?;
    mixup(scene)
        .or_else(|| disabled(scene))
        .or_else(|| keys(scene, declared))
        .or_else(|| runtime(scene, declared))
        .or_else(|| driver(scene, declared))
}

/// A file's new text, if it still is TOML.
fn done(scene: &Scene<'_>, file: usize, text: Option<String>) -> Step {
    let (path, text) = (scene.texts[file].path.to_owned(), text?);
    toml_edit::Document::parse(text.as_str()).is_ok().then_some((path, text))
}

fn mixup(scene: &Scene<'_>) -> Step {
    match judge::mixup(scene)?.1? {
        Mixup::Version { file, version } => done(scene, file, edit::set(&scene.texts[file], &["version".to_owned()], &version.to_string())),
        Mixup::Rename { file, from, to } => done(scene, file, edit::rename(&scene.texts[file], from, to)),
    }
}

fn disabled(scene: &Scene<'_>) -> Step {
    if scene.unneeded().is_some() {
        return None;
    }
    let entries = judge::entries(scene);
    let (file, _) = entries.first()?;
    let unwanted = |name: &str| entries.iter().any(|(f, entry)| f == file && entry == name);
    done(scene, *file, edit::drop_entries(&scene.texts[*file], "disabled_plugins", unwanted))
}

fn keys(scene: &Scene<'_>, declared: &Declared<'_>) -> Step {
    let view = scene.next.as_ref()?;
    if !view.systemd_cgroup || !faulty(scene, "containerd.cgroup-keys") {
        return None;
    }
    // What it was meant to do is kept, where the kubelet does not say otherwise.
    let meant = judge::wanted_driver(scene) != Some(CgroupDriver::Cgroupfs);
    if meant && view.default().is_some_and(|r| r.cgroup == Cgroup::Unset && r.is_runc()) {
        return set(scene, declared, option(declared, &view.default_runtime), "true");
    }
    set(scene, declared, Key::SystemdCgroup, "false")
}

/// The option of a runtime, which old files have in a table of its own.
fn option<'k>(declared: &Declared<'_>, name: &'k str) -> Key<'k> {
    if name == "default" && declared.get(Key::Runtime(name)).is_none() && declared.get(Key::OldRuntime("default_runtime")).is_some() {
        Key::OldOption("default_runtime")
    } else {
        Key::Option(name, "SystemdCgroup")
    }
}

fn runtime(scene: &Scene<'_>, declared: &Declared<'_>) -> Step {
    let view = scene.next.as_ref()?;
    let runc = "\"io.containerd.runc.v2\"";
    if view.default().is_none() {
        let typed: Vec<&String> = view.runtimes.iter().filter(|(_, r)| !r.kind.is_empty()).map(|(name, _)| name).collect();
        return match &typed[..] {
            // Another runtime than the usual one was never said to be the default.
            _ if view.default_runtime == "runc" => set(scene, declared, Key::RuntimeType("runc"), runc),
            _ if view.runtimes.contains_key("runc") => set(scene, declared, Key::DefaultRuntime, "\"runc\""),
            [only] => set(scene, declared, Key::DefaultRuntime, &toml_edit::Value::from(only.as_str()).to_string()),
            _ => set(scene, declared, Key::RuntimeType("runc"), runc),
        };
    }
    let mut untyped = view.runtimes.iter().filter(|(_, r)| r.kind.is_empty());
    untyped.find_map(|(name, runtime)| {
        let kind = judge::type_for(name, runtime.runc_options)?;
        set(scene, declared, Key::RuntimeType(name), &toml_edit::Value::from(kind).to_string())
    })
}

fn driver(scene: &Scene<'_>, declared: &Declared<'_>) -> Step {
    let (view, wanted) = (scene.next.as_ref()?, judge::wanted_driver(scene)? == CgroupDriver::Systemd);
    if scene.unneeded().is_some() {
        return None;
    }
    view.runtimes.iter().find_map(|(name, runtime)| {
        let wrong = matches!(runtime.cgroup, Cgroup::Bad(_)) || (runtime.is_runc() && runtime.cgroup.on() != wanted);
        let meant = *name == view.default_runtime || declared.get(Key::Runtime(name)).is_some();
        if wrong && meant { set(scene, declared, option(declared, name), &wanted.to_string()) } else { None }
    })
}

fn faulty(scene: &Scene<'_>, id: &str) -> bool {
    judge::all(scene).iter().any(|f| f.id == id && f.mend == Some(Mend::ContainerdConfig))
}

/// Sets a key where it is, or where its runtime is declared, or where other keys of the plugin are, or in the main file.
fn set(scene: &Scene<'_>, declared: &Declared<'_>, key: Key<'_>, value: &str) -> Step {
    let near = match key {
        Key::Option(name, _) | Key::RuntimeType(name) => declared.get(Key::Runtime(name)).or_else(|| declared.get(Key::Runtimes)),
        _ => None,
    };
    let section: Option<Section<'_>> = declared.get(key).or(near).map(|(section, _)| section);
    let section = section.or_else(|| declared.sections.iter().rev().find(|s| key.path(s.plugin).is_some()).copied());
    if let Some(section) = section {
        let text = edit::set(&scene.texts[section.file], &section.full(&key.path(section.plugin)?), value);
        return done(scene, section.file, text);
    }
    let generation = declared.generation;
    let main = scene.texts.first()?;
    let plugin = match (generation, declared.version()) {
        (Generation::One { .. }, ..2) => SHORT,
        (Generation::One { .. }, _) => CRI,
        // Without a version the short names are those of the file.
        (Generation::Two { .. }, _) => match main.version().unwrap_or(0) {
            ..2 => SHORT,
            2 => CRI,
            _ => RUNTIME,
        },
    };
    let path: Vec<String> = ["plugins", plugin].into_iter().map(str::to_owned).chain(key.path(plugin)?).collect();
    done(scene, 0, edit::set(main, &path, value))
}
