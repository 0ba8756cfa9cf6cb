//! A node of plain folders with its local API.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use pve_sim::{
    api::{self, Settings},
    faults::{Faults, StorageFault, TaskEffect, TaskFault},
    layout::NodeLayout,
    ticket,
};
use serde_json::Value;

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const STORAGES: &str =
    "dir: local\n\tpath /var/lib/vz\n\tcontent images,iso,snippets\n\ndir: rawdir\n\tpath /srv/raw\n\tcontent images\n\n";

pub(crate) struct Node {
    _dir: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
    _handle: api::Handle,
    pub(crate) layout: NodeLayout,
    address: SocketAddr,
    ticket: String,
}

pub(crate) struct Answer {
    pub(crate) status: String,
    pub(crate) body: Value,
}

impl Node {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = NodeLayout::new(dir.path(), "pve1");
        for folder in
            ["/etc/pve/nodes/pve1/qemu-server", "/etc/pve/priv", "/run/qemu-server", "/var/log/pve/tasks", "/var/lib/vz", "/srv/raw"]
        {
            fs::create_dir_all(layout.host_path(folder)).unwrap();
        }
        fs::write(layout.etc_pve().join("storage.cfg"), STORAGES).unwrap();
        let settings = Settings {
            program: env!("CARGO_BIN_EXE_pve-sim").into(),
            refusal_delay: Duration::ZERO,
            drop_delay: Duration::ZERO,
            lock_factor: 0.02,
            ..Settings::default()
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let handle = runtime.block_on(api::serve_with(layout.clone(), "127.0.0.1:0".parse().unwrap(), settings)).unwrap();
        let ticket = ticket::assemble(&layout, "root@pam").unwrap();
        Self { address: handle.address(), _dir: dir, _runtime: runtime, _handle: handle, layout, ticket }
    }

    pub(crate) fn raw(&self, parts: &[&str]) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut text = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            if at > 0 {
                // `100 Continue` tells that the header before this body has been read.
                let mut interim = Vec::new();
                while !interim.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    interim.push(byte[0]);
                }
            }
            stream.write_all(part.as_bytes()).unwrap();
        }
        let _ = stream.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    }

    pub(crate) fn head(&self, method: &str, path: &str, length: usize) -> String {
        format!(
            "{method} /api2/json{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nCookie: PVEAuthCookie={}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {length}\r\n\r\n",
            self.ticket
        )
    }

    pub(crate) fn call(&self, method: &str, path: &str, form: &str) -> Answer {
        let (path, body) =
            if matches!(method, "GET" | "DELETE") && !form.is_empty() { (format!("{path}?{form}"), "") } else { (path.to_owned(), form) };
        let text = self.raw(&[&(self.head(method, &path, body.len()) + body)]);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.lines().next().unwrap_or_default().trim_start_matches("HTTP/1.1 ").to_owned();
        Answer { status, body: serde_json::from_str(body).unwrap_or_default() }
    }

    /// Runs a call that starts a task, and waits for its end.
    pub(crate) fn task(&self, method: &str, path: &str, form: &str) -> String {
        self.end_of(&self.start(method, path, form))
    }

    pub(crate) fn start(&self, method: &str, path: &str, form: &str) -> String {
        let answer = self.call(method, path, form);
        answer.body["data"].as_str().unwrap_or_else(|| panic!("{method} {path} {form}: {}", answer.status)).to_owned()
    }

    pub(crate) fn end_of(&self, upid: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = self.call("GET", &format!("/nodes/pve1/tasks/{}/status", in_path(upid)), "");
            if let Some(end) = status.body["data"]["exitstatus"].as_str() {
                return end.to_owned();
            }
            assert!(Instant::now() < deadline, "{upid} does not end");
        }
    }

    pub(crate) fn template(&self) {
        assert_eq!(
            self.task("POST", "/nodes/pve1/qemu", "vmid=9000&name=tmpl&scsi0=local:0.0625,format=qcow2&net0=virtio,bridge=vmbr0"),
            "OK"
        );
        assert_eq!(self.task("POST", "/nodes/pve1/qemu/9000/template", ""), "OK");
    }

    /// The lines of a task's log.
    pub(crate) fn log(&self, upid: &str) -> Vec<String> {
        let answer = self.call("GET", &format!("/nodes/pve1/tasks/{}/log", in_path(upid)), "limit=1000");
        answer.body["data"].as_array().unwrap().iter().map(|line| line["t"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn config(&self, vmid: u32) -> String {
        fs::read_to_string(self.layout.vm_config(vmid)).unwrap_or_default()
    }

    pub(crate) fn images(&self, vmid: u32) -> Vec<String> {
        names(&self.layout.host_path(&format!("/var/lib/vz/images/{vmid}")))
    }

    pub(crate) fn faults(&self, faults: &Faults) {
        faults.store(&self.layout.faults()).unwrap();
    }
}

/// A UPID as a path has it.
fn in_path(upid: &str) -> String {
    upid.replace('>', "%3E")
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name().into_string().unwrap()).collect()
}

pub(crate) fn task_fault(kind: &str, effect: TaskEffect) -> Faults {
    Faults { tasks: vec![TaskFault { kind: kind.into(), effect }], ..Faults::default() }
}

pub(crate) fn storage_fault(storage: &str, fault: StorageFault) -> Faults {
    Faults { storages: BTreeMap::from([(storage.to_owned(), fault)]), ..Faults::default() }
}
