//! What the files say, as the containerd that is installed reads them.
//!
//! The same text means different things to different releases. 1.x: without `version` only the short plugin names count, with it only the full
//! ones; a file that is imported replaces the whole section of a plugin; a table `runtimes` replaces the built-in one. 2.x: each file is first
//! brought to the newest format, then merged deeply, and the built-in runtimes stay. Sections under a name that does not count are ignored
//! without a word.

use std::collections::{BTreeMap, BTreeSet};

use toml_edit::{Document, Item};

use super::{
    generation::Generation,
    text::{Place, Text, dotted, find, start, table},
    view::{Cgroup, RUNC_OPTIONS, Runtime, View},
};

/// The plugin's name in files of version 1.
pub(super) const SHORT: &str = "cri";
/// In version 2; in version 3 its server alone.
pub(super) const CRI: &str = "io.containerd.grpc.v1.cri";
/// In version 3: runtimes and CNI.
pub(super) const RUNTIME: &str = "io.containerd.cri.v1.runtime";
/// In version 3: images and snapshotter.
pub(super) const IMAGES: &str = "io.containerd.cri.v1.images";
/// In version 4: the socket.
const SERVER: &str = "io.containerd.server.v1.grpc";

/// Keys that stay under [`CRI`] in version 3.
const SERVER_KEYS: [&str; 6] = [
    "disable_tcp_service",
    "stream_server_address",
    "stream_server_port",
    "stream_idle_timeout",
    "enable_tls_streaming",
    "x509_key_pair_streaming",
];

/// Something that can be set, whatever it is called in a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key<'k> {
    DefaultRuntime,
    Runtimes,
    Runtime(&'k str),
    RuntimeType(&'k str),
    /// An option of a runtime.
    Option(&'k str, &'k str),
    /// A snapshotter for one runtime.
    RuntimeSnapshotter(&'k str),
    /// `default_runtime` and `untrusted_workload_runtime`, tables of their own in old files.
    OldRuntime(&'k str),
    /// Their `SystemdCgroup`.
    OldOption(&'k str),
    Snapshotter,
    SandboxImage,
    SystemdCgroup,
    /// A key of CNI.
    Cni(&'k str),
}

impl Key<'_> {
    /// Where it stands below a plugin's section; `None`: that plugin has no such key.
    pub(super) fn path(self, plugin: &str) -> Option<Vec<String>> {
        let one = plugin == SHORT || plugin == CRI;
        let path: Vec<&str> = match self {
            Self::Snapshotter | Self::SandboxImage | Self::SystemdCgroup if plugin == RUNTIME => return None,
            Self::Snapshotter if one => vec!["containerd", "snapshotter"],
            Self::Snapshotter => vec!["snapshotter"],
            Self::SandboxImage if one => vec!["sandbox_image"],
            Self::SandboxImage => vec!["pinned_images", "sandbox"],
            _ if plugin == IMAGES => return None,
            Self::SystemdCgroup => vec!["systemd_cgroup"],
            Self::DefaultRuntime => vec!["containerd", "default_runtime_name"],
            Self::Runtimes => vec!["containerd", "runtimes"],
            Self::Runtime(name) => vec!["containerd", "runtimes", name],
            Self::RuntimeType(name) => vec!["containerd", "runtimes", name, "runtime_type"],
            Self::Option(name, option) => vec!["containerd", "runtimes", name, "options", option],
            Self::RuntimeSnapshotter(name) => vec!["containerd", "runtimes", name, "snapshotter"],
            Self::OldRuntime(table) => vec!["containerd", table, "runtime_type"],
            Self::OldOption(table) => vec!["containerd", table, "options", "SystemdCgroup"],
            Self::Cni(key) => vec!["cni", key],
        };
        Some(path.into_iter().map(str::to_owned).collect())
    }
}

/// A plugin's section in a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section<'a> {
    /// The file's index.
    pub(super) file: usize,
    /// The plugin's name there.
    pub(super) plugin: &'static str,
    item: &'a Item,
}

impl Section<'_> {
    /// A path below it, from the root.
    pub(super) fn full(&self, path: &[String]) -> Vec<String> {
        ["plugins", self.plugin].into_iter().map(str::to_owned).chain(path.iter().cloned()).collect()
    }
}

/// The files together.
pub(super) struct Declared<'a> {
    pub(super) texts: &'a [Text<'a>],
    pub(super) generation: Generation,
    /// Sections that count, the last word last.
    pub(super) sections: Vec<Section<'a>>,
    /// Sections that say something and are not read, with the version that the file has.
    pub(super) ignored: Vec<Section<'a>>,
}

impl<'a> Declared<'a> {
    /// `None`: a file is no TOML, and containerd does not start with these.
    pub(super) fn new(texts: &'a [Text<'a>], generation: Generation) -> Option<Self> {
        if texts.iter().any(|t| t.document.is_err()) {
            return None;
        }
        let (mut sections, mut ignored): (Vec<Section<'a>>, Vec<Section<'a>>) = (Vec::new(), Vec::new());
        let merged = merged_version(texts, generation);
        for (file, text) in texts.iter().enumerate() {
            for plugin in [SHORT, CRI, IMAGES, RUNTIME] {
                let Some((_, item)) = text.root().and_then(|r| find(r, &["plugins", plugin])) else { continue };
                let section = Section { file, plugin, item };
                if counts(generation, merged, text.version(), plugin) {
                    if matches!(generation, Generation::One { .. }) {
                        sections.retain(|s| s.plugin != plugin);
                    }
                    sections.push(section);
                } else if says_something(&section, generation) {
                    ignored.push(section);
                }
            }
        }
        // In 2.x what is named the new way wins.
        sections.sort_by_key(|s| matches!(s.plugin, IMAGES | RUNTIME));
        Some(Self { texts, generation, sections, ignored })
    }

    /// The version that the files have together.
    pub(super) fn version(&self) -> i64 {
        merged_version(self.texts, self.generation)
    }

    /// What is set last, and where.
    pub(super) fn get(&self, key: Key<'_>) -> Option<(Section<'a>, &'a Item)> {
        let found = |s: &Section<'a>| {
            let path = key.path(s.plugin)?;
            let (_, item) = find(s.item, &path)?;
            self.passes(s, key, &path).then_some((*s, item))
        };
        // The keys whose old names win in 2.x.
        let old = |s: &&Section<'a>| matches!(key, Key::SandboxImage | Key::Snapshotter) && s.plugin != IMAGES;
        self.sections.iter().rev().filter(old).find_map(found).or_else(|| self.sections.iter().rev().find_map(found))
    }

    /// Whether 2.x brings a key of a section under an old name to the newest format. It does so key by key, one level down in `containerd` and
    /// `cni`; what the new name has there already stays. The snapshotter comes along only where the old section has a table of runtimes.
    fn passes(&self, section: &Section<'a>, key: Key<'_>, path: &[String]) -> bool {
        let Generation::Two { newest } = self.generation else { return true };
        if matches!(section.plugin, RUNTIME | IMAGES) {
            return true;
        }
        // 2.3 does it for each file, older ones for all together.
        let near = |other: &&Section<'a>| newest < 4 || other.file == section.file;
        let any = |plugins: &[&str], path: &[String]| {
            self.sections.iter().filter(near).any(|s| plugins.contains(&s.plugin) && find(s.item, path).is_some())
        };
        match key {
            Key::SandboxImage => true,
            Key::Snapshotter => any(&[CRI, SHORT], &["containerd".to_owned(), "runtimes".to_owned()]),
            _ => !any(&[RUNTIME], &path[..path.len().min(2)]),
        }
    }

    fn string(&self, key: Key<'_>) -> Option<String> {
        self.get(key)?.1.as_str().map(str::to_owned)
    }

    /// Where a key stands.
    pub(super) fn place(&self, key: Key<'_>) -> Option<Place> {
        let (section, _) = self.get(key)?;
        self.texts[section.file].place(section.file, &section.full(&key.path(section.plugin)?))
    }

    /// Where a section stands.
    pub(super) fn section_place(&self, section: &Section<'_>) -> Option<Place> {
        self.texts[section.file].place(section.file, &section.full(&[]))
    }

    /// Where an ignored section and the ones that count say the same: nothing is lost.
    pub(super) fn repeated(&self, ignored: &Section<'_>) -> bool {
        let mut leaves = Vec::new();
        collect(ignored.item, &mut Vec::new(), &mut leaves);
        leaves.iter().filter(|(path, _)| !SERVER_KEYS.contains(&path[0].as_str())).all(|(path, item)| {
            let same = |key: &[String]| self.sections.iter().any(|s| find(s.item, key).is_some_and(|(_, other)| alike(other, item)));
            match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["pinned_images", "sandbox"] | ["sandbox_image"] => self.get(Key::SandboxImage).is_some_and(|(_, o)| alike(o, item)),
                ["snapshotter"] | ["containerd", "snapshotter"] => self.get(Key::Snapshotter).is_some_and(|(_, o)| alike(o, item)),
                _ => same(path),
            }
        })
    }

    /// Entries of `disabled_plugins` or `required_plugins`, with their files.
    pub(super) fn plugins_list(&self, list: &str) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for (file, text) in self.texts.iter().enumerate() {
            let array = text.root().and_then(|r| r.get(list)).and_then(Item::as_array);
            found.extend(array.into_iter().flatten().filter_map(|v| v.as_str()).map(|v| (file, v.to_owned())));
        }
        found
    }

    /// Whether an entry of `disabled_plugins` of a file takes CRI away.
    pub(super) fn disables_cri(&self, entry: &str) -> bool {
        match self.generation {
            // By id in version 1, by type and id after; with the short name in a file of version 2 it does not start at all.
            _ if entry == SHORT => true,
            Generation::One { .. } => self.version() >= 2 && entry == CRI,
            Generation::Two { .. } => [CRI, RUNTIME, IMAGES].contains(&entry),
        }
    }

    /// containerd's socket, in the last file that sets it: file, key, value. From 2.3 on a plugin of its own has it; what `[grpc]` says is brought
    /// there from files of older versions that do not have that plugin's section, and is ignored in others.
    fn address(&self) -> Option<(usize, &'static [&'static str], &'a str)> {
        let newest = self.generation.newest();
        self.texts.iter().enumerate().rev().find_map(|(file, text)| {
            let root = text.root()?;
            // Of a version that it does not know nothing can be told; its `[grpc]` is what its author meant.
            let known = text.version().is_some_and(|version| (4..=newest).contains(&version));
            let moved = known || (newest >= 4 && find(root, &["plugins", SERVER]).is_some());
            let key: &'static [&'static str] = if moved { &["plugins", SERVER, "address"] } else { &["grpc", "address"] };
            Some((file, key, find(root, key)?.1.as_str().filter(|a| !a.is_empty())?))
        })
    }

    /// containerd's socket as the files have it.
    fn endpoint(&self) -> String {
        self.address().map_or(crate::config::defaults::CONTAINERD_SOCKET, |(_, _, address)| address).to_owned()
    }

    /// Where the socket is set.
    pub(super) fn endpoint_place(&self) -> Option<Place> {
        let (file, key, _) = self.address()?;
        self.texts[file].place(file, key)
    }

    /// What containerd would have with these files. `builtin`: what it has without any.
    pub(super) fn view(&self, builtin: Option<&str>) -> View {
        let builtin = builtin.map(defaults).unwrap_or_default();
        let dirs = self.get(Key::Cni("bin_dirs")).and_then(|(_, i)| i.as_array());
        let mut bin: Vec<String> = dirs.into_iter().flatten().filter_map(|v| v.as_str()).map(str::to_owned).collect();
        if bin.is_empty() {
            // Distributions have their own; without being told it is not guessed.
            bin = self.string(Key::Cni("bin_dir")).map_or(builtin.cni_bin, |dir| vec![dir]);
        }
        let mut view = View {
            default_runtime: self.string(Key::DefaultRuntime).unwrap_or_else(|| "runc".to_owned()),
            runtimes: self.runtimes(),
            snapshotter: Some(self.string(Key::Snapshotter).or(builtin.snapshotter).unwrap_or_else(|| "overlayfs".to_owned())),
            sandbox_image: self.string(Key::SandboxImage).or(builtin.sandbox_image),
            systemd_cgroup: self.get(Key::SystemdCgroup).and_then(|(_, i)| i.as_bool()).unwrap_or_default(),
            cni_conf: self.string(Key::Cni("conf_dir")).unwrap_or_else(|| "/etc/cni/net.d".to_owned()),
            cni_bin: bin,
            cni_template: self.string(Key::Cni("conf_template")).is_some_and(|t| !t.is_empty()),
            endpoint: Some(self.endpoint()),
        };
        if matches!(self.generation, Generation::One { .. }) {
            for (old, name) in [("untrusted_workload_runtime", "untrusted"), ("default_runtime", "default")] {
                let Some(kind) = self.string(Key::OldRuntime(old)).filter(|k| !k.is_empty()) else { continue };
                let cgroup = self.get(Key::OldOption(old)).map_or(Cgroup::Unset, |(_, item)| cgroup(item));
                view.runtimes.insert(name.to_owned(), Runtime { kind, cgroup, ..Runtime::default() });
                if name == "default" {
                    view.default_runtime = name.to_owned();
                }
            }
        }
        view
    }

    fn runtimes(&self) -> BTreeMap<String, Runtime> {
        let builtin = Runtime { kind: "io.containerd.runc.v2".to_owned(), runc_options: true, ..Runtime::default() };
        let mut names = BTreeSet::new();
        let mut any = false;
        for section in &self.sections {
            let Some(path) = Key::Runtimes.path(section.plugin) else { continue };
            let Some((_, item)) = find(section.item, &path).filter(|_| self.passes(section, Key::Runtimes, &path)) else { continue };
            any = true;
            names.extend(table(item).into_iter().flat_map(|t| t.iter().filter(|(_, i)| i.is_table_like()).map(|(k, _)| k.to_owned())));
        }
        let stays = matches!(self.generation, Generation::Two { .. }) || !any;
        let mut runtimes = BTreeMap::new();
        if stays {
            runtimes.insert("runc".to_owned(), builtin);
        }
        for name in names {
            let runtime = runtimes.entry(name.clone()).or_default();
            if let Some(kind) = self.string(Key::RuntimeType(&name)) {
                runtime.kind = kind;
            }
            runtime.runc_options |= RUNC_OPTIONS.iter().any(|o| self.get(Key::Option(&name, o)).is_some());
            runtime.snapshotter = self.string(Key::RuntimeSnapshotter(&name)).unwrap_or_default();
            if let Some((_, item)) = self.get(Key::Option(&name, "SystemdCgroup")) {
                runtime.cgroup = cgroup(item);
            }
        }
        runtimes
    }
}

fn cgroup(item: &Item) -> Cgroup {
    item.as_bool().map_or(Cgroup::Bad(item.type_name()), Cgroup::Set)
}

/// The last version that is said. Without one it is 1 in 1.x; 2.x takes such a file for one of the newest, or of the file before it, as it does
/// with version 1, and knows only that its plugins may have short names.
fn merged_version(texts: &[Text<'_>], generation: Generation) -> i64 {
    match generation {
        Generation::One { .. } => texts.iter().rev().find_map(|t| t.version().filter(|v| *v != 0)).unwrap_or(1),
        Generation::Two { newest } => texts.iter().rev().find_map(|t| t.version().filter(|v| *v > 1)).unwrap_or(newest),
    }
}

/// Whether a plugin's section is read.
fn counts(generation: Generation, merged: i64, own: Option<i64>, plugin: &str) -> bool {
    let own = own.unwrap_or(0);
    match (generation, plugin) {
        (Generation::One { .. }, _) => plugin == if merged < 2 { SHORT } else { CRI },
        // All files are merged, then brought to the newest format from the version they have together.
        (Generation::Two { newest: ..=3 }, SHORT) => own < 2 && merged < 3,
        (Generation::Two { newest: ..=3 }, CRI) => merged < 3,
        // Each file is brought to the newest format from its own version, then merged.
        (Generation::Two { .. }, SHORT) => own < 2,
        (Generation::Two { newest }, CRI) => own < newest,
        (Generation::Two { .. }, _) => true,
    }
}

/// Whether a section that is not read holds anything that would matter.
fn says_something(section: &Section<'_>, generation: Generation) -> bool {
    let server = matches!(generation, Generation::Two { .. }) && section.plugin == CRI;
    let mut leaves = Vec::new();
    collect(section.item, &mut Vec::new(), &mut leaves);
    leaves.iter().any(|(path, _)| !(server && SERVER_KEYS.contains(&path[0].as_str())))
}

/// The values below an item, with their paths.
fn collect<'i>(item: &'i Item, path: &mut Vec<String>, leaves: &mut Vec<(Vec<String>, &'i Item)>) {
    match table(item) {
        Some(table) => {
            for (key, item) in table.iter() {
                path.push(key.to_owned());
                collect(item, path, leaves);
                path.pop();
            }
        }
        None if !path.is_empty() => leaves.push((path.clone(), item)),
        None => {}
    }
}

/// Whether two values are the same, however they are written.
fn alike(a: &Item, b: &Item) -> bool {
    match (a.as_array(), b.as_array()) {
        (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(&a.clone().into(), &b.clone().into())),
        _ => {
            let plain = |i: &Item| (i.as_str().map(str::to_owned), i.as_bool(), i.as_integer(), i.as_float().map(f64::to_bits));
            plain(a) == plain(b) && plain(a) != (None, None, None, None)
        }
    }
}

/// What differs between releases and distributions.
#[derive(Debug, Default)]
struct Builtin {
    sandbox_image: Option<String>,
    snapshotter: Option<String>,
    cni_bin: Vec<String>,
}

/// What a containerd without files has, from what it writes as its configuration.
fn defaults(dump: &str) -> Builtin {
    let Ok(document) = Document::parse(dump) else { return Builtin::default() };
    let said = |key: Key<'_>| {
        let found = |plugin: &&str| find(document.as_item(), &["plugins", plugin]).and_then(|(_, s)| Some(find(s, &key.path(plugin)?)?.1));
        [IMAGES, RUNTIME, CRI].iter().find_map(found)
    };
    let string = |key: Key<'_>| said(key).and_then(Item::as_str).filter(|s| !s.is_empty()).map(str::to_owned);
    let dirs = said(Key::Cni("bin_dirs")).and_then(Item::as_array).into_iter().flatten().filter_map(|v| v.as_str()).map(str::to_owned);
    Builtin {
        sandbox_image: string(Key::SandboxImage),
        snapshotter: string(Key::Snapshotter),
        cni_bin: dirs.chain(string(Key::Cni("bin_dir"))).collect(),
    }
}

/// Where a root's key stands.
pub(super) fn root_place(texts: &[Text<'_>], file: usize, key: &str) -> Option<Place> {
    let text = texts.get(file)?;
    let (found, item) = find(text.root()?, &[key])?;
    Some(Place { file, at: text.at(start(found, item)?), key: dotted(&[key]) })
}
