//! Whether containerd takes the files, and whether their sections' names fit their version.

use super::super::{
    Fault, Finding, Generation, Scene, State,
    declared::{CRI, Declared, IMAGES, RUNTIME, SHORT, Section, root_place},
    text::{Text, find, table},
};
use crate::error::Trouble;

const SYNTAX: &str = "containerd.config-syntax";
const VERSION: &str = "containerd.config-version";

pub(super) fn syntax(scene: &Scene<'_>) -> Finding {
    let (state, start) =
        if scene.runs() { (State::Degraded, "not yet in force, but containerd does not start again: ") } else { (State::Failed, "") };
    let files = match &scene.facts.files {
        Err((Trouble::Missing, why)) => {
            let remedy = "put that file back, or take it out of `imports`; `containerd config dump` says whether it is taken".to_owned();
            return Finding { remedy, ..Finding::new(SYNTAX, state, format!("{start}{why}")) }.about(scene.main());
        }
        Err((_, why)) => return Finding::unknown(SYNTAX, format!("the configuration cannot be read: {why}")),
        Ok(files) if files.is_empty() => return Finding::ok(SYNTAX, format!("there is no {}: containerd has its defaults", scene.main())),
        Ok(files) => files,
    };
    let broken = scene.texts.iter().enumerate().find_map(|(n, t)| Some((n, t, t.document.as_ref().err()?)));
    if let Some((_, text, syntax)) = broken {
        let at = format!("{}:{}:{}", text.path.display(), syntax.line, syntax.column);
        // containerd's own parser has the last word: it is laxer in places.
        if scene.facts.refusal.as_deref() == Some("") {
            return Finding::ok(SYNTAX, format!("{at} is no TOML ({}), but containerd takes it", syntax.message));
        }
        let seen = format!("{start}{at} (line {}, column {}) is no TOML: {}", syntax.line, syntax.column, syntax.message);
        let remedy = format!("correct line {} of {}; `containerd config dump` says whether it is taken", syntax.line, text.path.display());
        return Finding { remedy, ..Finding::new(SYNTAX, state, seen) }.about(text.path.display().to_string());
    }
    if let Some(text) =
        scene.texts.iter().find(|t| t.text.starts_with('\u{feff}')).filter(|_| matches!(scene.generation, Generation::Two { .. }))
    {
        let path = text.path.display().to_string();
        let seen = format!("{start}{path}:1:1 begins with a byte order mark, which {} does not take", scene.generation);
        return Finding { remedy: format!("sed -i '1s/^\\xef\\xbb\\xbf//' {path}"), ..Finding::new(SYNTAX, state, seen) }.about(path);
    }
    match scene.facts.refusal.as_deref() {
        None | Some("") => {
            let names = files.iter().map(|f| f.path.display().to_string()).collect::<Vec<_>>().join(", ");
            Finding::ok(SYNTAX, format!("{names}: well-formed"))
        }
        Some(why) => {
            let seen = format!("{start}containerd refuses {}: {}", scene.main(), why.chars().take(300).collect::<String>());
            Finding {
                remedy: "correct what it names; `containerd config dump` says whether it is taken".to_owned(),
                ..Finding::new(SYNTAX, state, seen)
            }
            .about(scene.main())
        }
    }
}

/// How a mix-up of versions is put right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Mixup {
    /// By this version in this file.
    Version { file: usize, version: i64 },
    /// By another name for a plugin's sections in this file.
    Rename { file: usize, from: &'static str, to: &'static str },
}

pub(super) fn version(scene: &Scene<'_>) -> Finding {
    let Some(declared) = &scene.declared else { return Finding::unknown(VERSION, scene.unread()) };
    match mixup(scene) {
        Some((fault, _)) => {
            let waits = fault.state == State::Failed && scene.runs();
            let (state, start) =
                if waits { (State::Degraded, "not yet in force, but from containerd's next start on: ") } else { (fault.state, "") };
            fault.finding(VERSION, state, format!("{start}{}", fault.placed(scene)), scene)
        }
        None if scene.texts.is_empty() => Finding::ok(VERSION, format!("there is no {}", scene.main())),
        None => {
            let said = scene.texts[0].version().map_or("no version".to_owned(), |v| format!("version {v}"));
            Finding::ok(VERSION, format!("{said}, which fits {} and the sections' names", declared.generation))
        }
    }
}

/// The first mix-up of versions, and how it is put right where that is plain.
pub(in super::super) fn mixup(scene: &Scene<'_>) -> Option<(Fault, Option<Mixup>)> {
    let declared = scene.declared.as_ref()?;
    let (fault, fix) = refused(declared).or_else(|| ignored(declared))?;
    Some((if fix.is_some() { fault.mendable() } else { fault }, fix))
}

/// Names of a file's plugins.
fn plugins(text: &Text<'_>) -> Vec<String> {
    let plugins = text.root().and_then(|r| r.get("plugins")).and_then(table);
    plugins.into_iter().flat_map(|t| t.iter().map(|(k, _)| k.to_owned())).collect()
}

fn has(text: &Text<'_>, plugin: &str) -> bool {
    text.root().is_some_and(|r| find(r, &["plugins", plugin]).is_some())
}

/// What the rule of 1.x calls a full name.
fn is_full(name: &str) -> bool {
    name.split('.').count() >= 4
}

/// Whether all names of plugins are full.
fn all_full(declared: &Declared<'_>) -> bool {
    let listed = ["disabled_plugins", "required_plugins"].into_iter().flat_map(|l| declared.plugins_list(l)).all(|(_, n)| is_full(&n));
    listed && declared.texts.iter().flat_map(plugins).all(|p| is_full(&p))
}

/// What containerd does not start with.
fn refused(declared: &Declared<'_>) -> Option<(Fault, Option<Mixup>)> {
    let (generation, newest) = (declared.generation, declared.generation.newest());
    if let Some((file, version)) = declared.texts.iter().enumerate().find_map(|(n, t)| Some((n, t.version().filter(|v| *v > newest)?))) {
        let names_are_new = declared.texts.iter().any(|t| has(t, RUNTIME) || has(t, IMAGES));
        let fix = match generation {
            Generation::One { .. } if names_are_new => rename(declared),
            Generation::One { .. } if all_full(declared) => Some(Mixup::Version { file, version: 2 }),
            _ => None,
        };
        let seen = format!(
            "version = {version}, but {generation} knows files up to version {newest}: it refuses this one, or ignores sections under newer names"
        );
        let remedy = format!("write the configuration for version {newest} (`containerd config default` shows one)");
        return Some((Fault::failed(seen, remedy).at(root_place(declared.texts, file, "version")), fix));
    }
    match generation {
        Generation::One { .. } if declared.version() >= 2 => short_names(declared),
        Generation::Two { newest: 4 } => {
            let first = declared.texts.iter().find_map(|t| t.version().filter(|v| *v > 0))?;
            let (file, version) = declared.texts.iter().enumerate().find_map(|(n, t)| Some((n, t.version().filter(|v| *v > first)?)))?;
            let seen = format!("version = {version} in an imported file, but {first} in the file that imports it: containerd refuses it");
            Some((Fault::failed(seen, "give both the same version").at(root_place(declared.texts, file, "version")), None))
        }
        _ => None,
    }
}

/// Short names of plugins in files of version 2, for 1.x.
fn short_names(declared: &Declared<'_>) -> Option<(Fault, Option<Mixup>)> {
    for (file, text) in declared.texts.iter().enumerate() {
        let Some(name) = plugins(text).into_iter().find(|p| !is_full(p)) else { continue };
        let seen = format!(
            "the section of plugin {name:?} has the short name of version 1 in files of version {}: containerd refuses them",
            declared.version()
        );
        let full = if name == SHORT { CRI } else { "io.containerd.<kind>.v1.<id>" };
        let fault = Fault::failed(seen, format!("name it by its full name, {full:?}")).at(text.place(file, &["plugins", &name]));
        let only = plugins(text).iter().all(|p| is_full(p) || p == SHORT) && !has(text, CRI);
        return Some((fault, only.then_some(Mixup::Rename { file, from: SHORT, to: CRI })));
    }
    for list in ["disabled_plugins", "required_plugins"] {
        // CRI itself is a matter of its own.
        let Some((file, name)) = declared.plugins_list(list).into_iter().find(|(_, n)| !is_full(n) && n != SHORT) else { continue };
        let seen = format!("{list} has the short name {name:?} in files of version {}: containerd refuses them", declared.version());
        return Some((
            Fault::failed(seen, "name it by its full name, io.containerd.<kind>.v1.<id>").at(root_place(declared.texts, file, list)),
            None,
        ));
    }
    None
}

/// Sections under names of 2.x, named as 1.x reads them: only those of the runtime have the same keys.
fn rename(declared: &Declared<'_>) -> Option<Mixup> {
    let file = declared.texts.iter().position(|t| has(t, RUNTIME))?;
    let alone = declared.texts.iter().all(|t| !has(t, IMAGES)) && !has(&declared.texts[file], CRI) && !has(&declared.texts[file], SHORT);
    alone.then_some(Mixup::Rename { file, from: RUNTIME, to: CRI })
}

/// What containerd does not read.
fn ignored(declared: &Declared<'_>) -> Option<(Fault, Option<Mixup>)> {
    let section = declared.ignored.iter().find(|s| !declared.repeated(s))?;
    let (file, own) = (section.file, declared.texts[section.file].version());
    let said = match (declared.generation, own) {
        (Generation::One { .. }, _) if declared.texts.iter().any(|t| t.version().is_some()) => Some(declared.version()),
        (_, own) => own,
    };
    let version = said.map_or("without `version`".to_owned(), |said| format!("of version {said}"));
    let seen = format!(
        "in files {version} {} ignores the section of plugin {:?}: what stands there is not in force",
        declared.generation, section.plugin
    );
    let fix = match declared.generation {
        Generation::One { .. } => fix_for_one(declared, section),
        Generation::Two { newest } => fix_for_two(declared, section, newest),
    };
    let remedy = match fix {
        Some(Mixup::Version { version, .. }) => format!("set `version = {version}` at the top of {}", declared.texts[file].path.display()),
        Some(Mixup::Rename { to, .. }) => format!("name the section {to:?}"),
        None => format!(
            "write the section under the name that version {} has for it (`containerd config default` shows it)",
            declared.generation.newest()
        ),
    };
    Some((Fault::degraded(seen, remedy).at(declared.section_place(section)), fix))
}

fn fix_for_one(declared: &Declared<'_>, section: &Section<'_>) -> Option<Mixup> {
    match section.plugin {
        CRI if all_full(declared) => {
            // Where a version is said it is changed, else it is said in the main file.
            let file = declared.texts.iter().rposition(|t| t.version().is_some_and(|v| v != 0)).unwrap_or(0);
            Some(Mixup::Version { file, version: 2 })
        }
        RUNTIME => rename(declared),
        _ => None,
    }
}

fn fix_for_two(declared: &Declared<'_>, section: &Section<'_>, newest: i64) -> Option<Mixup> {
    let (file, text) = (section.file, &declared.texts[section.file]);
    let is_new = |p: &String| p.starts_with("io.containerd.cri.v1.") || p.starts_with("io.containerd.server.v1.");
    match section.plugin {
        // As files of version 2 they are brought to the newest format at each start.
        CRI if all_full(declared) && !declared.texts.iter().flat_map(plugins).any(|p| is_new(&p)) => {
            Some(Mixup::Version { file, version: 2 })
        }
        SHORT if !has(text, CRI) && text.version().unwrap_or(0) <= newest => Some(Mixup::Rename { file, from: SHORT, to: CRI }),
        _ => None,
    }
}
