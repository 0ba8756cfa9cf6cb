//! Edited files, each tried in its place: copies beside the main file that import each other as the files do.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use toml_edit::{Array, Document, Item, Value};

use super::{
    ConfigText,
    dump::Tried,
    files::{Copy, import, read_all},
};
use crate::error::{Error, Trouble};

/// The copies; they go when this is dropped.
pub(super) struct Trial {
    /// The main file's first.
    files: Vec<(ConfigText, Copy)>,
}

impl Trial {
    /// Errors: `Look`; also when one that is edited is no part of the configuration.
    pub(super) fn new(main: &Path, edits: Vec<ConfigText>) -> Result<Self, Error> {
        let mut files = read_all(main)?;
        let mut copies = BTreeMap::new();
        for edit in edits {
            let file = files.iter_mut().find(|f| f.path == edit.path).ok_or_else(|| Error::Look {
                trouble: Trouble::Missing,
                message: format!("{}: is no part of containerd's configuration any more", edit.path.display()),
            })?;
            *file = edit;
            copies.insert(file.path.clone(), copy(main, &file.path));
        }
        // What leads to a copy is copied as well, so that it leads there. The main file leads everywhere.
        let entries = files.iter().map(Entries::of).collect::<Result<Vec<_>, _>>()?;
        while let Some((file, _)) = files.iter().zip(&entries).find(|(f, e)| !copies.contains_key(&f.path) && e.lead_to(&copies)) {
            copies.insert(file.path.clone(), copy(main, &file.path));
        }
        let mut made = Vec::new();
        for (file, entries) in files.into_iter().zip(entries) {
            let Some(copy) = copies.get(&file.path) else { continue };
            let text = entries.pointed(&file, &copies, file.path == main);
            made.push((file, Copy::make(copy.clone(), text.as_bytes())?));
        }
        Ok(Self { files: made })
    }

    pub(super) fn tried(&self) -> Vec<Tried<'_>> {
        self.files.iter().map(|(file, copy)| Tried { copy: &copy.0, file: &file.path, text: &file.text }).collect()
    }
}

/// All lie beside the main file: in a folder that is imported the daemon might read them.
fn copy(main: &Path, file: &Path) -> PathBuf {
    Copy::name(&main.with_file_name(file.file_name().unwrap_or_default()))
}

/// What a file imports: entries, and the files that each means.
struct Entries(Vec<(String, Vec<PathBuf>)>);

impl Entries {
    /// Of one that is no TOML, or whose list is none: nothing; containerd says so.
    fn of(file: &ConfigText) -> Result<Self, Error> {
        let document = Document::parse(file.text.as_str()).ok();
        let list = document.as_ref().and_then(|d| d.get("imports")).and_then(Item::as_array);
        let entries: Option<Vec<&str>> = list.into_iter().flatten().map(Value::as_str).collect();
        let meant = |entry: &str| Ok((entry.to_owned(), import(&file.path, entry)?));
        entries.unwrap_or_default().into_iter().map(meant).collect::<Result<_, _>>().map(Self)
    }

    fn lead_to(&self, copies: &BTreeMap<PathBuf, PathBuf>) -> bool {
        self.0.iter().any(|(_, files)| files.iter().any(|f| copies.contains_key(f)))
    }

    /// The file's text with the copies in its list. Nothing else moves: what is said of lines and columns holds for the file.
    fn pointed(&self, file: &ConfigText, copies: &BTreeMap<PathBuf, PathBuf>, main: bool) -> String {
        let mut list = Array::new();
        for (entry, files) in &self.0 {
            if files.iter().any(|f| copies.contains_key(f)) {
                list.extend(files.iter().map(|f| copies.get(f).unwrap_or(f).to_string_lossy().into_owned()));
            } else if main {
                list.push(entry.as_str());
            } else {
                // The copy lies in another folder.
                list.push(file.path.parent().unwrap_or(Path::new("/")).join(entry).to_string_lossy().into_owned());
            }
        }
        let span = Document::parse(file.text.as_str()).ok().and_then(|d| d.get("imports")?.as_array()?.span());
        let Some((span, old)) = span.filter(|_| !list.is_empty()).and_then(|s| Some((s.clone(), file.text.get(s)?))) else {
            return file.text.clone();
        };
        list.set_trailing("\n".repeat(old.matches('\n').count()));
        format!("{}{}{}", &file.text[..span.start], Value::Array(list), &file.text[span.end..])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::fs;

    use super::*;

    /// Files of a configuration, the main one first, in a folder of their own.
    fn etc(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let main = folder.path().join(files[0].0);
        (folder, main)
    }

    fn edit(path: PathBuf, text: &str) -> ConfigText {
        ConfigText { path, text: text.into() }
    }

    #[test]
    fn each_copy_imports_copies_in_the_order_of_the_files_and_keeps_its_lines() {
        let (folder, main) = etc(&[
            ("config.toml", "# main\r\nimports = [\r\n  \"conf.d/*.toml\", # all\r\n  \"last.toml\",\r\n]\r\nversion = 2\r\n"),
            ("conf.d/a.toml", "a = 1\n"),
            ("conf.d/b.toml", "imports = [\"../deep/c.toml\", 'd.toml']\nb = 1\n"),
            ("conf.d/d.toml", ""),
            ("deep/c.toml", "imports = [\"../config.toml\"]\nc = 1\n"),
            ("last.toml", "l = 1\n"),
        ]);
        let at = |name: &str| folder.path().join(name);
        let trial = Trial::new(&main, vec![edit(at("deep/c.toml"), "imports = [\"../config.toml\"]\nc = 2\n")]).unwrap();
        let tried = trial.tried();
        let of = |name: &str| tried.iter().find(|t| t.file == at(name)).unwrap().copy.display().to_string();
        let text = |name: &str| fs::read_to_string(of(name)).unwrap();
        assert_eq!(tried.iter().map(|t| t.file.to_owned()).collect::<Vec<_>>(), ["config.toml", "conf.d/b.toml", "deep/c.toml"].map(at));
        assert!(tried.iter().all(|t| t.copy.parent() == main.parent()), "not where the daemon might read them");
        let main = format!(
            "# main\r\nimports = [{:?}, {:?}, {:?}, \"last.toml\"\n\n\n]\r\nversion = 2\r\n",
            at("conf.d/a.toml"),
            of("conf.d/b.toml"),
            at("conf.d/d.toml")
        );
        assert_eq!(text("config.toml"), main);
        assert_eq!(text("conf.d/b.toml"), format!("imports = [{:?}, {:?}]\nb = 1\n", of("deep/c.toml"), at("conf.d/d.toml")));
        assert_eq!(text("deep/c.toml"), format!("imports = [{:?}]\nc = 2\n", of("config.toml")));
        assert_eq!(fs::read_to_string(at("deep/c.toml")).unwrap(), "imports = [\"../config.toml\"]\nc = 1\n");
        drop(trial);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "no copy stays");
    }

    #[test]
    fn an_edit_of_the_main_file_is_tried_as_it_is() {
        let (_folder, main) = etc(&[("config.toml", "imports = [\"*.none\"]\nversion = 2\n")]);
        let edited = "imports = [\"*.none\"]\nversion = 3\n";
        let trial = Trial::new(&main, vec![edit(main.clone(), edited)]).unwrap();
        let [tried] = &trial.tried()[..] else { panic!() };
        assert_eq!(fs::read_to_string(tried.copy).unwrap(), edited);
        assert_eq!((tried.file, tried.text), (main.as_path(), edited));
    }

    #[test]
    fn what_is_no_part_of_the_configuration_cannot_be_tried() {
        let (folder, main) = etc(&[("config.toml", "version = 2\n"), ("other.toml", "")]);
        let error = Trial::new(&main, vec![edit(folder.path().join("other.toml"), "")]).err().unwrap();
        assert!(matches!(error, Error::Look { trouble: Trouble::Missing, .. }), "{error:?}");
    }
}
