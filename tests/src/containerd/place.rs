//! The folder in which a containerd lives.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{Release, end};

/// The pause image of healthy configurations.
pub const PAUSE: &str = "pvelet.test/pause:1";

/// A folder with everything of one containerd; it goes with everything that was started and mounted in it.
#[derive(Debug)]
pub struct Place {
    folder: TempDir,
    release: Release,
}

impl Place {
    /// An empty one for Debian's containerd. What killed test processes left is swept before.
    #[allow(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        Self::of(Release::Debian)
    }

    /// As [`Self::new`], for any containerd.
    pub fn of(release: Release) -> Self {
        end::sweep();
        let folder = TempDir::with_prefix(format!("{}{}.", end::PREFIX, std::process::id())).unwrap();
        let this = Self { folder, release };
        for sub in ["root", "state", "run", "etc", "cni/conf", "cni/bin", "opt"] {
            fs::create_dir_all(this.folder().join(sub)).unwrap();
        }
        this
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Which containerd lives here.
    pub fn release(&self) -> Release {
        self.release
    }

    /// A program of it; see [`Release::program`].
    pub fn program(&self, name: &str) -> PathBuf {
        self.release.program(name)
    }

    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.folder().join("etc/config.toml")
    }

    /// What it says.
    pub fn log(&self) -> PathBuf {
        self.folder().join("containerd.log")
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder().join("run/containerd.sock")
    }

    /// Where its images, snapshots and contents lie.
    pub fn root(&self) -> PathBuf {
        self.folder().join("root")
    }

    /// What does not survive a reboot.
    pub fn state(&self) -> PathBuf {
        self.folder().join("state")
    }

    /// Configurations of CNI.
    pub fn cni_conf(&self) -> PathBuf {
        self.folder().join("cni/conf")
    }

    /// Programs of CNI.
    pub fn cni_bin(&self) -> PathBuf {
        self.folder().join("cni/bin")
    }

    /// Gives it a network, as far as containerd looks at it.
    pub fn give_network(&self) {
        let list = r#"{"cniVersion": "0.4.0", "name": "test", "plugins": [{"type": "bridge"}]}"#;
        fs::write(self.cni_conf().join("10-test.conflist"), list).unwrap();
        fs::write(self.cni_bin().join("bridge"), "").unwrap();
    }

    /// What every configuration has to say so that nothing of this machine is touched; `keys` are further keys of its top.
    pub fn head(&self, keys: &str) -> String {
        format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\n{keys}\n[grpc]\n  address = {socket:?}\n\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\n  path = {opt:?}\n\n\
             [plugins.\"io.containerd.nri.v1.nri\"]\n  disable = true\n\n",
            root = self.root(),
            state = self.state(),
            socket = self.socket(),
            opt = self.folder().join("opt"),
        )
    }

    /// The CRI plugin's table, without its runtimes; `keys` are further keys of it. Containers without CAP_SYS_RESOURCE, in which tests run,
    /// cannot lower the OOM score, so that is not tried.
    pub fn cri(&self, keys: &str) -> String {
        format!(
            "[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"{PAUSE}\"\n  stream_server_port = \"0\"\n  restrict_oom_score_adj = true\n{keys}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = {bin:?}\n  conf_dir = {conf:?}\n\n",
            bin = self.cni_bin(),
            conf = self.cni_conf(),
        )
    }

    /// runc as the default runtime, with control groups kept by itself.
    pub fn runc() -> &'static str {
        "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  default_runtime_name = \"runc\"\n\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n  SystemdCgroup = false\n"
    }

    /// A configuration with which everything works.
    pub fn healthy(&self) -> String {
        format!("{}{}{}", self.head(""), self.cri(""), Self::runc())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        end::end(self.folder());
    }
}
