//! `pvelet-controller validate`: all mistakes of all files at once.

use std::{
    collections::HashMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use super::RunError;
use crate::{kind::parse, store::folder::is_manifest};

/// Checks files, and the manifests in folders. Mistakes go to `out`, one a line: `file: document n (object): path = value: what is wrong`.
pub(super) fn validate(paths: &[PathBuf], out: &mut impl Write) -> Result<(), RunError> {
    let failed = || RunError::io("cannot write");
    let (mut mistakes, mut objects, mut seen) = (0, 0, HashMap::new());
    let files = expand(paths)?;
    for file in &files {
        let text = fs::read_to_string(file).map_err(RunError::io(format!("cannot read {}", file.display())))?;
        let (manifests, problems) = parse(&text);
        if manifests.is_empty() && problems.is_empty() {
            mistakes += 1;
            writeln!(out, "{}: holds no document", file.display()).map_err(failed())?;
        }
        for problem in &problems {
            let id = problem.id.as_ref().map(|id| format!(" ({id})")).unwrap_or_default();
            for mistake in &problem.mistakes {
                mistakes += 1;
                writeln!(out, "{}: document {}{id}: {mistake}", file.display(), problem.document).map_err(failed())?;
            }
        }
        for manifest in manifests {
            objects += 1;
            if let Some(other) = seen.insert(manifest.id.clone(), file) {
                mistakes += 1;
                writeln!(out, "{}: {} stands in {} already; remove one", file.display(), manifest.id, other.display()).map_err(failed())?;
            }
        }
    }
    if mistakes > 0 {
        return Err(RunError::Invalid { mistakes, files: files.len() });
    }
    writeln!(out, "{objects} objects in {} files are well-formed", files.len()).map_err(failed())
}

fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>, RunError> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let error = |p: &Path| RunError::io(format!("cannot list {}", p.display()));
        let mut inside = Vec::new();
        for entry in fs::read_dir(path).map_err(error(path))? {
            let entry = entry.map_err(error(path))?;
            if is_manifest(&entry.file_name().to_string_lossy()) {
                inside.push(entry.path());
            }
        }
        inside.sort();
        files.extend(inside);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = "apiVersion: pvelet.dev/v1alpha1\nkind: PveMachine\nmetadata: {name: web-1}\nspec: {source: {template: 9000}}\n";

    fn check(files: &[(&str, &str)]) -> (Result<(), RunError>, String) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let mut out = Vec::new();
        let result = validate(&[dir.path().to_owned()], &mut out);
        (result, String::from_utf8(out).unwrap())
    }

    #[test]
    fn sound_files_are_counted() {
        let (result, out) = check(&[("a.yaml", GOOD), ("notes.txt", "not: a manifest"), ("x.status.yaml", "kept: by the store")]);
        result.unwrap();
        assert_eq!(out, "1 objects in 1 files are well-formed\n");
    }

    #[test]
    fn mistakes_of_all_files_are_told() {
        let (result, out) =
            check(&[("a.yaml", &GOOD.replace("9000", "9")), ("b.yaml", ": :"), ("c.yaml", GOOD), ("d.yaml", GOOD), ("e.yaml", "")]);
        assert!(matches!(result, Err(RunError::Invalid { mistakes: 4, files: 5 })), "{result:?}\n{out}");
        for want in [
            "a.yaml: document 1 (PveMachine web-1): spec.source.template = 9: not a VMID",
            "b.yaml",
            "d.yaml: PveMachine web-1 stands in",
            "e.yaml: holds no document",
        ] {
            assert!(out.contains(want), "{want}\n{out}");
        }
    }
}
