//! The chart of the controller, rendered and installed by the real helm.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    kubernetes::{Kube, KubeError},
    script::{file, folder_of},
};

/// The namespace that the chart is rendered for and installed in.
pub const NAMESPACE: &str = "pvelet";
/// The release's name.
pub const RELEASE: &str = "pvelet";

/// helm, with folders of its own.
#[derive(Debug)]
pub struct Helm {
    kubeconfig: PathBuf,
    folder: TempDir,
}

impl Helm {
    /// One that knows no cluster: it only renders.
    pub fn alone() -> Self {
        Self::with_cluster(Path::new("/dev/null"))
    }

    /// One that installs into the cluster of a kubeconfig.
    pub fn with_cluster(kubeconfig: &Path) -> Self {
        Self { kubeconfig: kubeconfig.to_owned(), folder: TempDir::with_prefix("pvelet-helm-").expect("temporary folder") }
    }

    /// Runs a command on the chart in the namespace, with values, and returns what it prints; the error is what it complains of.
    ///
    /// # Errors
    /// helm says no.
    pub fn run(&self, command: &[&str], values: &Value) -> Result<String, String> {
        static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
        let program = PROGRAM.get_or_init(|| folder_of("tests/helm/build.sh").join("helm"));
        let file = tempfile::Builder::new().suffix(".yaml").tempfile_in(self.folder.path()).expect("a file of values");
        // JSON is YAML.
        std::fs::write(file.path(), values.to_string()).expect("values");
        let mut helm = Command::new(program);
        helm.args(command).args(["--namespace", NAMESPACE]);
        if command.first().is_some_and(|c| ["install", "lint", "template", "upgrade"].contains(c)) {
            helm.arg("--values").arg(file.path());
        }
        for folder in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            helm.env(folder, self.folder.path().join(folder));
        }
        let out = helm.env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null()).output().expect("helm starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stdout) + &text(&out.stderr)) }
    }

    /// The objects that the chart makes of values.
    ///
    /// # Errors
    /// helm does not take the values.
    pub fn render(&self, values: &Value) -> Result<Vec<Value>, String> {
        self.render_chart(&chart(), values)
    }

    /// As [`Self::render`], of a chart that lies elsewhere.
    ///
    /// # Errors
    /// As there.
    pub fn render_chart(&self, chart: &str, values: &Value) -> Result<Vec<Value>, String> {
        let text = self.run(&["template", RELEASE, chart], values)?;
        let documents = serde_norway::Deserializer::from_str(&text).map(|d| Value::deserialize(d).expect("rendered YAML"));
        Ok(documents.filter(|o| !o.is_null()).collect())
    }
}

/// The chart's folder, as an argument.
pub fn chart() -> String {
    file("packaging/helm/pvelet").display().to_string()
}

/// Where an API server keeps objects of an object's kind, by what it tells of its kinds; in the object's namespace, or the chart's.
///
/// # Errors
/// As [`Kube::get`]; a kind that the API server does not know is told as 404.
pub async fn collection(kube: &Kube, object: &Value) -> Result<String, KubeError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let known = kube.get(&root).await?;
    let of_kind = |r: &&Value| r["kind"] == kind.as_str() && !text(&r["name"]).contains('/');
    let Some(resource) = known["resources"].as_array().into_iter().flatten().find(of_kind) else {
        return Err(KubeError { code: 404, reason: "NotFound".into(), message: format!("{version} has no kind {kind}") });
    };
    let name = text(&resource["name"]);
    if resource["namespaced"] != true {
        return Ok(format!("{root}/{name}"));
    }
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or(NAMESPACE);
    Ok(format!("{root}/namespaces/{namespace}/{name}"))
}
