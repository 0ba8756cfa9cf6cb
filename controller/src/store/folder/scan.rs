//! What the manifests say, file by file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use super::{super::StoreError, record::SUFFIX};
use crate::kind::{FieldError, Kind, Manifest, ObjectRef, Problem, Tenant, parse};

/// No sensible manifest is larger; a mistaken one would cost memory.
const MAX_SIZE: u64 = 4 << 20;

/// The manifests of the folder as last read.
#[derive(Debug, Default)]
pub(super) struct Scan {
    files: BTreeMap<String, Parsed>,
    /// Objects that several files hold, with the file whose manifest counts.
    owners: BTreeMap<ObjectRef, String>,
}

#[derive(Debug, Default)]
struct Parsed {
    manifests: Vec<Manifest>,
    problems: Vec<Problem>,
}

impl Scan {
    /// Reads the named files again, or all.
    pub(super) fn refresh(&mut self, dir: &Path, names: Option<&[String]>) -> Result<(), StoreError> {
        let error = |source| StoreError::Io { what: "cannot list", path: dir.to_owned(), source };
        match names {
            Some(names) => names.iter().filter(|n| is_manifest(n)).for_each(|name| self.read(dir, name)),
            None => {
                let mut present = Vec::new();
                for entry in fs::read_dir(dir).map_err(error)? {
                    let name = entry.map_err(error)?.file_name().to_string_lossy().into_owned();
                    if is_manifest(&name) {
                        present.push(name);
                    }
                }
                self.files.retain(|name, _| present.contains(name));
                present.iter().for_each(|name| self.read(dir, name));
            }
        }
        self.choose_owners();
        Ok(())
    }

    fn read(&mut self, dir: &Path, name: &str) {
        let path = dir.join(name);
        let text = match fs::metadata(&path) {
            Ok(meta) if !meta.is_file() => return,
            Ok(meta) if meta.len() > MAX_SIZE => Err(io::Error::other("it is larger than 4 MiB")),
            Ok(_) => fs::read_to_string(&path),
            Err(e) => Err(e),
        };
        let parsed = match text {
            Ok(text) => {
                let (mut manifests, mut problems) = parse(&text);
                problems.extend(manifests.extract_if(.., |m| m.id.kind == Tenant::KIND).map(no_tenants));
                if manifests.is_empty() && problems.is_empty() {
                    // What an editor leaves behind on a full disk. To delete an object its file is removed.
                    problems.push(whole_file("holds no document; to delete what it held, remove the file".to_owned()));
                }
                Parsed { manifests, problems }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.files.remove(name);
                return;
            }
            Err(e) => Parsed { manifests: Vec::new(), problems: vec![whole_file(format!("cannot be read: {e}"))] },
        };
        self.files.insert(name.to_owned(), parsed);
    }

    /// Of an object that stands in several files the one counts that had it first, so that a copy changes nothing until the original goes.
    fn choose_owners(&mut self) {
        let mut owners: BTreeMap<ObjectRef, String> = BTreeMap::new();
        for (file, parsed) in &self.files {
            for manifest in &parsed.manifests {
                let was = self.owners.get(&manifest.id);
                if was == Some(file) || !owners.contains_key(&manifest.id) {
                    owners.insert(manifest.id.clone(), file.clone());
                }
            }
        }
        self.owners = owners;
    }

    /// The manifest that counts for each object, with its file.
    pub(super) fn manifests(&self) -> BTreeMap<ObjectRef, (String, Manifest)> {
        self.owners.keys().filter_map(|id| Some((id.clone(), self.manifest(id)?))).collect()
    }

    /// The manifest that counts for one object, with its file.
    pub(super) fn manifest(&self, id: &ObjectRef) -> Option<(String, Manifest)> {
        let file = self.owners.get(id)?;
        let manifest = self.files.get(file)?.manifests.iter().find(|m| m.id == *id)?;
        Some((file.clone(), manifest.clone()))
    }

    /// Whether an object that stands in no sound manifest may stand in one that cannot be read: then it is not deleted. `sources` are the
    /// files in which objects were last found.
    pub(super) fn holds(&self, id: &ObjectRef, source: &str, sources: &BTreeSet<String>) -> bool {
        let source_is_gone = !self.files.contains_key(source);
        self.files.iter().any(|(file, parsed)| {
            parsed.problems.iter().any(|problem| match &problem.id {
                Some(about) => about == id,
                // Nobody knows what it holds: what it held before, or, if it is new, what stood in a file that is no more (it may have been
                // renamed).
                None => file == source || (source_is_gone && !sources.contains(file)),
            })
        })
    }

    /// What is wrong, by file.
    pub(super) fn problems(&self) -> Vec<(PathBuf, String)> {
        let mut all: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (file, parsed) in &self.files {
            for problem in &parsed.problems {
                let lines = problem.mistakes.iter().map(|m| format!("  {}{m}", at(problem)));
                all.entry(file).or_default().extend(lines);
            }
            let mut seen = Vec::new();
            for manifest in &parsed.manifests {
                let owner = self.owners.get(&manifest.id);
                if owner != Some(file) || seen.contains(&&manifest.id) {
                    let owner = owner.map_or("", String::as_str);
                    all.entry(file).or_default().push(format!("  {} stands in {owner} already; remove it from one of them", manifest.id));
                }
                seen.push(&manifest.id);
            }
        }
        all.into_iter().map(|(file, lines)| (PathBuf::from(file), lines.join("\n"))).collect()
    }
}

/// Where in the file a problem is.
fn at(problem: &Problem) -> String {
    match (&problem.id, problem.document) {
        (Some(id), 0) => format!("{id}: "),
        (Some(id), document) => format!("document {document} ({id}): "),
        (None, 0) => String::new(),
        (None, document) => format!("document {document}: "),
    }
}

/// A folder is one administrator's: nobody's namespace is to be kept from naming another tenant.
fn no_tenants(manifest: Manifest) -> Problem {
    let text =
        "a PveTenant counts in Kubernetes only; here each PveMachine names its tenant: set spec.tenant there, and remove this document";
    Problem { document: 0, id: Some(manifest.id), mistakes: vec![FieldError::new("kind", Tenant::KIND, text)] }
}

fn whole_file(problem: String) -> Problem {
    Problem { document: 0, id: None, mistakes: vec![FieldError::new("", "", problem)] }
}

/// Whether a file of this name is a manifest: `*.yaml` and `*.yml`, but neither hidden files nor what the store writes.
pub fn is_manifest(name: &str) -> bool {
    (name.ends_with(".yaml") || name.ends_with(".yml")) && !name.starts_with('.') && !name.ends_with(SUFFIX)
}
