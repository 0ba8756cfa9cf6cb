//! The controller's image, run by a real containerd and runc: not as root, with no capability, on a root that cannot be written.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use pvelet_proto::identity::Role;
use pvelet_tests::{Pki, containerd::Containerd, program, script::file};
use tempfile::TempDir;

const USER: u32 = 65532;
const NAME: &str = concat!("localhost/pvelet-controller:", env!("CARGO_PKG_VERSION"));
const CONTROLLER: &str = "/usr/bin/pvelet-controller";
/// What `ctr` gives where nothing is said.
const CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Makes an image of the programs in a folder.
fn build(programs: &Path, archive: &Path) {
    let out = Command::new(file("packaging/container/build.sh")).arg(programs).arg(archive).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// `ctr run` as a pod of the chart runs it; control groups are left alone.
fn run<'a>(more: &[&'a str], id: &'a str, args: &[&'a str]) -> Vec<String> {
    let mut all = vec!["run", "--read-only", "--seccomp", "--cgroup", ""];
    all.extend(more);
    let mut all: Vec<String> = all.into_iter().map(str::to_owned).collect();
    all.extend(CAPABILITIES.iter().flat_map(|c| ["--cap-drop".to_owned(), format!("CAP_{c}")]));
    all.extend([NAME, id].iter().chain(args).map(|a| (*a).to_owned()));
    all
}

fn ctr(containerd: &Containerd, args: &[String]) -> String {
    containerd.ctr(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// What the controller needs to start, for the user that it runs as.
fn home(dir: &Path) -> PathBuf {
    let pki = Pki::new(dir);
    let (cert, key) = pki.role(Role::Operator, "controller");
    let home = dir.join("controller");
    fs::create_dir_all(home.join("manifests")).unwrap();
    for (from, to) in [(cert, "controller.crt"), (key, "controller.key"), (pki.dir.ca_cert_path(), "ca.crt")] {
        fs::copy(from, home.join(to)).unwrap();
        chown(home.join(to), Some(USER), Some(USER)).unwrap();
    }
    chown(home.join("manifests"), Some(USER), Some(USER)).unwrap();
    home
}

/// The value of a line of `/proc/<pid>/status`.
fn status<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{key} is not in {text}")).split_whitespace().collect()
}

#[test]
fn the_same_programs_make_the_same_image_and_missing_ones_are_told() {
    let dir = TempDir::new().unwrap();
    // Small ones, since it is not about them.
    for name in ["pvelet-controller", "pveletctl"] {
        fs::copy("/bin/true", dir.path().join(name)).unwrap();
    }
    let (one, two) = (dir.path().join("one.tar"), dir.path().join("two.tar"));
    build(dir.path(), &one);
    build(dir.path(), &two);
    assert!(fs::read(&one).unwrap() == fs::read(two).unwrap(), "they differ");
    fs::remove_file(dir.path().join("pveletctl")).unwrap();
    let out = Command::new(file("packaging/container/build.sh")).arg(dir.path()).arg(&one).output().unwrap();
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("pveletctl is missing"), "{out:?}");
}

#[tokio::test]
async fn the_controller_runs_in_its_image_without_any_right() {
    let dir = TempDir::new().unwrap();
    let archive = dir.path().join("image.tar");
    build(program("pvelet-controller").parent().unwrap(), &archive);
    let containerd = Containerd::start().await;
    containerd.ctr(&["images", "import", &archive.display().to_string()]);

    for program in ["pvelet-controller", "pveletctl"] {
        let told = ctr(&containerd, &run(&["--rm"], program, &[&format!("/usr/bin/{program}"), "--version"]));
        assert_eq!(told.trim(), format!("{program} {}", env!("CARGO_PKG_VERSION")));
    }
    assert!(ctr(&containerd, &run(&["--rm"], "crds", &[CONTROLLER, "crds"])).contains("pvemachines.pvelet.dev"));
    // Where nothing is named, the controller is what runs, and asks for a command.
    let arguments = run(&["--rm"], "nothing", &[]);
    let told = containerd.try_ctr(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).unwrap_err();
    assert!(told.contains("Usage: pvelet-controller"), "{told}");

    let home = home(dir.path());
    let mount = format!("type=bind,src={},dst=/etc/pvelet/controller,options=rbind:rw", home.display());
    let pid = dir.path().join("pid");
    let more = ["--rm", "--mount", &mount, "--pid-file", &pid.display().to_string()].map(str::to_owned);
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let mut command = Command::new(containerd.place().program("ctr"));
    command.arg("--address").arg(containerd.place().socket()).args(["--namespace", "k8s.io"]);
    command.args(run(&more, "controller", &[CONTROLLER, "run", "--metrics-address", "127.0.0.1:0"]));
    let mut controller = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(controller.stderr.take().unwrap()).lines().map(|l| l.unwrap());
    let before: Vec<String> = said.by_ref().take_while(|l| !l.contains("started")).collect();
    assert!(before.iter().all(|l| !l.contains("ERROR") && !l.contains("ctr:")), "{before:#?}");

    let proc = PathBuf::from(format!("/proc/{}", fs::read_to_string(&pid).unwrap()));
    let text = fs::read_to_string(proc.join("status")).unwrap();
    assert_eq!(status(&text, "Uid"), ["65532"; 4]);
    assert_eq!(status(&text, "Gid"), ["65532"; 4]);
    for set in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(&text, set), ["0000000000000000"], "{set}");
    }
    assert_eq!((status(&text, "NoNewPrivs"), status(&text, "Seccomp")), (vec!["1"], vec!["2"]));
    let mounts = fs::read_to_string(proc.join("mountinfo")).unwrap();
    let root = mounts.lines().find_map(|l| l.split(' ').nth(4).filter(|p| *p == "/").map(|_| l.split(' ').nth(5).unwrap_or_default()));
    assert!(root.is_some_and(|options| options.split(',').any(|o| o == "ro")), "{mounts}");

    containerd.ctr(&["tasks", "kill", "--signal", "SIGTERM", "controller"]);
    let rest: Vec<String> = said.collect();
    assert!(controller.wait().unwrap().success() && rest.iter().any(|l| l.contains("stopped")), "{rest:#?}");
}
