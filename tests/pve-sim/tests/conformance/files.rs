//! `files`: what a PVE host's files look like. Each recorded command is carried out on the simulated node's files, or, where it was one of PVE's, by its call.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

use serde_json::{Value, json};

use crate::{
    client::{self, Answer, Login},
    golden::{self, Record},
    node::Node,
    normal::{self, Difference, Pairs},
    replay::{Outcome, PATIENCE, wait_for},
    seed,
};

struct Files {
    node: Node,
}

/// Carries out the records.
pub(crate) fn replay() -> Vec<Outcome> {
    let files = Files { node: Node::start(true) };
    let seeds = seed::load("files");
    files.node.prepare(&seeds["(start)"]);
    files.work();
    let records = golden::load("files");
    records
        .iter()
        .map(|record| Outcome { name: record.name.clone(), request: record.argv.join(" "), differences: files.check(record) })
        .collect()
}

fn unless(same: bool, at: &str, recorded: &str, now: &str) -> Vec<Difference> {
    if same { vec![] } else { vec![(at.to_owned(), recorded.to_owned(), now.to_owned())] }
}

fn text(value: Option<&Value>) -> &str {
    value.and_then(Value::as_str).unwrap_or_default()
}

/// Each run of digits as one sign.
fn without_numbers(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        if !c.is_ascii_digit() {
            plain.push(c);
        } else if !plain.ends_with('#') {
            plain.push('#');
        }
    }
    plain
}

/// `.vmlist` without its counters, its lines in order.
fn vm_list(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| {
            let (head, counter) = line.rsplit_once("\"version\": ").unwrap_or((line, ""));
            format!("{head}{}", counter.trim_start_matches(|c: char| c.is_ascii_digit()).trim_end_matches([',', '}']).trim())
        })
        .filter(|line| !line.is_empty() && line != "}")
        .collect();
    lines.sort_unstable();
    lines
}

impl Files {
    fn api(&self, method: &str, path: &str, params: Value) -> Answer {
        let record = Record { method: Some(method.into()), params, ..Record::default() };
        let login = Login::Ticket(&self.node.ticket);
        let answer = client::send(self.node.address(), &record, &format!("/api2/json{path}"), &login, PATIENCE);
        if let Some(upid) = answer.json()["data"].as_str().and_then(|text| text.parse().ok()) {
            wait_for(&self.node.layout, &upid);
        }
        answer
    }

    /// Tasks of several kinds and ends, so that their lists and logs are there to be looked at.
    fn work(&self) {
        self.api("POST", "/nodes/pve1/qemu/9001/clone", json!({"newid": 150, "name": "x"}));
        self.api("PUT", "/nodes/pve1/qemu/150/resize", json!({"disk": "scsi0", "size": "1M"}));
        self.api("POST", "/nodes/pve1/qemu/140/status/stop", Value::Null);
        self.api("DELETE", "/nodes/pve1/qemu/150", Value::Null);
        self.api("POST", "/nodes/pve1/storage/local/content", json!({"vmid": 9999, "filename": "vm-9999-pvc-c.raw", "size": "16M"}));
        self.api("POST", "/nodes/pve1/storage/local/content", json!({"vmid": 101, "filename": "vm-101-gone.raw", "size": "1M"}));
        self.api("DELETE", "/nodes/pve1/storage/local/content/local:101/vm-101-gone.raw", Value::Null);
    }

    fn read(&self, path: &str) -> String {
        self.node.read(path).unwrap_or_else(|| String::from("(missing)"))
    }

    /// Runs a shell command with the paths of a real host moved below the node's root.
    fn shell(&self, command: &str) -> Output {
        let root = self.node.layout.root().display().to_string();
        let moved = command.replace("/etc/pve", &format!("{root}/etc/pve")).replace("/var/", &format!("{root}/var/"));
        Command::new("sh").arg("-c").arg(moved).env("LC_ALL", "C").output().unwrap()
    }

    fn check(&self, record: &Record) -> Vec<Difference> {
        let recorded = text(record.stdout.as_ref());
        match record.name.as_str() {
            "vmlist" => self.same_list(recorded),
            "version" => {
                let now = self.read("/etc/pve/.version");
                unless(without_numbers(recorded) == without_numbers(&now), ".version", recorded, &now)
            }
            "members" | "debug" | "storage.cfg" | "user.cfg" | "interfaces" => {
                let path = &record.argv[1];
                let now = self.read(path);
                unless(normal::same_text(recorded, &format!("{now}\n"), &mut Pairs::default()) || recorded == now, path, recorded, &now)
            }
            "clusterlog" => self.cluster_log(recorded),
            "rrd" => self.statistics(recorded),
            "tree" => self.tree(recorded),
            "tasks-index" => self.task_list(recorded, "index", 1),
            "tasks-active" => self.task_list(recorded, "active", 2),
            "tasks-tree" => self.task_tree(recorded),
            "lockfiles" => self.lock_files(recorded),
            "images" => self.images(recorded),
            "df" => {
                let now = String::from_utf8_lossy(&self.shell("df -k /var/lib/vz").stdout).into_owned();
                let shape = |text: &str| text.lines().map(|line| line.split_whitespace().count().min(6)).collect::<Vec<_>>();
                unless(shape(recorded) == shape(&now), "df", recorded, &now)
            }
            "conf-write-test" => self.config_written(record),
            "conf-bad-name" | "conf-big" | "lock-mkdir" => self.same_command(record, &record.argv[2]),
            "dup-vmid" => self.duplicate(record),
            other => vec![(String::from("record"), other.to_owned(), String::from("(no check)"))],
        }
    }

    fn same_list(&self, recorded: &str) -> Vec<Difference> {
        let now = self.read("/etc/pve/.vmlist");
        unless(vm_list(recorded) == vm_list(&now), ".vmlist", recorded, &now)
    }

    /// Exit status, output and error messages of a command.
    fn same_command(&self, record: &Record, command: &str) -> Vec<Difference> {
        let done = self.shell(command);
        let root = self.node.layout.root().display().to_string();
        // `ls` tells owner, time and group by name: those of this host's own user list.
        let plain = |text: &str| -> String {
            let words = |line: &str| {
                let words: Vec<&str> = line.split_whitespace().collect();
                if line.starts_with("-rw") && words.len() > 8 { format!("{} {} {}", words[0], words[4], words[8]) } else { line.to_owned() }
            };
            text.replace(&root, "").lines().map(words).collect::<Vec<_>>().join("\n").trim_end().replace(['\u{2018}', '\u{2019}'], "'")
        };
        let (output, errors) = (plain(&String::from_utf8_lossy(&done.stdout)), plain(&String::from_utf8_lossy(&done.stderr)));
        let mut found = unless(plain(text(record.stdout.as_ref())) == output, "output", text(record.stdout.as_ref()), &output);
        found.extend(unless(plain(text(record.stderr.as_ref())) == errors, "errors", text(record.stderr.as_ref()), &errors));
        found.extend(unless(
            record.exit_code == done.status.code().map(i64::from),
            "exit code",
            &format!("{:?}", record.exit_code),
            &done.status.to_string(),
        ));
        found
    }

    /// Entries of the same members in the same order, about the same happenings.
    fn cluster_log(&self, recorded: &str) -> Vec<Difference> {
        let now = self.read("/etc/pve/.clusterlog");
        let happening = |line: &str| {
            let keys: Vec<&str> = line
                .split('"')
                .skip(1)
                .step_by(2)
                .filter(|word| ["uid", "time", "pri", "tag", "pid", "node", "user", "msg"].contains(word))
                .collect();
            let message = line.split("\"msg\": \"").nth(1).unwrap_or_default();
            let kind = message.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
            format!("{} {kind}", keys.join(","))
        };
        let of = |text: &str| {
            text.lines().filter(|line| line.starts_with("{\"uid\"")).map(happening).filter(|h| h.contains(" task")).collect::<BTreeSet<_>>()
        };
        unless(of(recorded) == of(&now), ".clusterlog", recorded, &now)
    }

    /// As many fields for each kind of thing that is measured, and the same state of the stopped VMs.
    fn statistics(&self, recorded: &str) -> Vec<Difference> {
        let now = self.read("/etc/pve/.rrd");
        let shape = |line: &str| format!("{} {}", line.split('/').next().unwrap_or_default(), line.split(':').count());
        let of = |text: &str| text.lines().map(shape).filter(|s| !s.starts_with(' ')).collect::<BTreeSet<_>>();
        let (old, new) = (of(recorded), of(&now));
        let stopped = |text: &str| {
            let fields = |line: &str| {
                let parts: Vec<&str> = line.split(':').collect();
                (parts.len() > 4 && parts[3] == "stopped").then(|| format!("{} {}", parts[1], parts[3..5].join(" ")))
            };
            text.lines().filter_map(fields).collect::<BTreeSet<_>>()
        };
        unless(new.is_subset(&old) && !new.is_empty() && stopped(&now).is_subset(&stopped(recorded)), ".rrd", recorded, &now)
    }

    /// Kind, mode and owner of every file under /etc/pve.
    fn tree(&self, recorded: &str) -> Vec<Difference> {
        let root = self.node.layout.root().display().to_string();
        let done = self.shell("find /etc/pve -printf '%M_%U_%G_%p\\n'");
        let now: BTreeSet<String> = String::from_utf8_lossy(&done.stdout).replace(&root, "").lines().map(str::to_owned).collect();
        let old = recorded.lines().filter(|line| !line.is_empty()).map(|line| {
            // The size is left out: what a file holds is not looked at here.
            let parts: Vec<&str> = line.splitn(5, '_').collect();
            format!("{}_{}_{}_{}", parts[0], 0, 33, parts[4])
        });
        let missing: Vec<String> = old.filter(|line| !now.contains(line)).collect();
        unless(missing.is_empty(), "find /etc/pve", &missing.join("\n"), &now.into_iter().collect::<Vec<_>>().join("\n"))
    }

    /// The lines of `index` and `active`: UPID, what stands before the status, and the statuses that are known.
    fn task_list(&self, recorded: &str, name: &str, fields: usize) -> Vec<Difference> {
        let now = self.read(&format!("/var/log/pve/tasks/{name}"));
        let form = |line: &str| {
            let mut parts = line.split(' ');
            let upid = parts.next().unwrap_or_default();
            let middle: Vec<&str> = parts.by_ref().take(fields).collect();
            let upid_fits = upid.parse::<pve_sim::task::Upid>().is_ok();
            let end_fits = middle.last().is_some_and(|end| end.len() == 8 && u32::from_str_radix(end, 16).is_ok());
            let saved = if fields == 2 { middle[0].to_owned() } else { String::new() };
            format!("upid {upid_fits} end {end_fits} saved {saved} status {}", parts.next().is_some())
        };
        let of = |text: &str| text.lines().filter(|line| !line.is_empty()).map(form).collect::<BTreeSet<_>>();
        let ends = |text: &str| {
            text.lines().filter(|line| line.ends_with(" OK")).count() > 0 && text.contains(" shrinking disks is not supported")
        };
        unless(of(recorded) == of(&now) && ends(recorded) == ends(&now), name, recorded, &now)
    }

    /// A log lies in the folder named by the last digit of its task's start.
    fn task_tree(&self, recorded: &str) -> Vec<Difference> {
        let root = self.node.layout.root().display().to_string();
        let done = self.shell("find /var/log/pve/tasks -name 'UPID*'");
        let now = String::from_utf8_lossy(&done.stdout).replace(&root, "");
        let fits = |line: &str| {
            let (folder, name) = line.strip_prefix("/var/log/pve/tasks/")?.split_once('/')?;
            let start = name.split(':').nth(4)?;
            Some(start.ends_with(folder) && folder.len() == 1)
        };
        let all = |text: &str| text.lines().filter(|line| !line.is_empty()).all(|line| fits(line) == Some(true)) && !text.is_empty();
        unless(all(recorded) && all(&now), "task logs", recorded, &now)
    }

    /// Names and modes of the locks of VMs and storages that were worked on.
    fn lock_files(&self, recorded: &str) -> Vec<Difference> {
        let line = |folder: &str, name: &str| {
            let path = self.node.layout.host_path(&format!("{folder}/{name}"));
            fs::metadata(path)
                .map_or_else(|error| error.to_string(), |meta| format!("{:o} {}", meta.permissions().mode() & 0o777, meta.len()))
        };
        let mut found = Vec::new();
        for (folder, name) in [
            ("/var/lock/qemu-server", "lock-9001.conf"),
            ("/var/lock/qemu-server", "lock-150.conf"),
            ("/var/lock/pve-manager", "pve-storage-local"),
        ] {
            let there = recorded.lines().any(|text| {
                let words: Vec<&str> = text.split_whitespace().collect();
                words.len() == 9 && words[0] == "-rw-r--r--" && words[4] == "0" && words[8] == name
            });
            found.extend(unless(there && line(folder, name) == "644 0", name, "644 0", &line(folder, name)));
        }
        found
    }

    /// Modes and sizes of the images.
    fn images(&self, recorded: &str) -> Vec<Difference> {
        let mut folder = String::new();
        let mut found = Vec::new();
        for line in recorded.lines() {
            if let Some(path) = line.strip_suffix(':') {
                folder = path.to_owned();
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            // What the node made itself: the others were put there.
            if words.len() != 10 || words[9] != "vm-9999-pvc-c.raw" {
                continue;
            }
            let path = format!("{folder}/{}", words[9]);
            let meta = fs::metadata(self.node.layout.host_path(&path)).unwrap();
            let now = format!("{:o} {}", meta.permissions().mode() & 0o777, meta.len());
            let mode = if words[1] == "-rw-r-----" { "640" } else { words[1] };
            found.extend(unless(now == format!("{mode} {}", words[5]), &path, line, &now));
            let of_folder = fs::metadata(self.node.layout.host_path(&folder)).unwrap().permissions().mode() & 0o777;
            found.extend(unless(of_folder == 0o740, &folder, "740", &format!("{of_folder:o}")));
        }
        found
    }

    /// A config file with any text in it counts as a VM.
    fn config_written(&self, record: &Record) -> Vec<Difference> {
        let done = self.shell("echo x > /etc/pve/qemu-server/999999.conf; echo rc=$?");
        let now = format!("{}{}", String::from_utf8_lossy(&done.stdout), self.read("/etc/pve/.vmlist"));
        let recorded = text(record.stdout.as_ref());
        let mut found = unless(vm_list(recorded) == vm_list(&now), "output", recorded, &now);
        let answer = self.api("GET", "/nodes/pve1/qemu/999999/config", Value::Null);
        found.extend(unless(
            matches!(&answer, Answer::Complete { status_line, .. } if status_line.ends_with("200 OK")),
            "config",
            "200",
            &format!("{answer:?}"),
        ));
        self.shell("rm /etc/pve/qemu-server/999999.conf");
        let after = record.files_changed.get("/etc/pve/.vmlist");
        found.extend(self.same_list(text(after)));
        found
    }

    /// One VMID on one node: a second config for it is refused, and a VM of another node is none of ours.
    fn duplicate(&self, record: &Record) -> Vec<Difference> {
        let recorded = text(record.stdout.as_ref());
        let table = recorded.find("      VMID NAME").unwrap_or(recorded.len());
        let command = record.argv[2].split("; qm list").next().unwrap_or_default();
        let done = self.shell(command);
        let output = String::from_utf8_lossy(&done.stdout).into_owned();
        let mut found = unless(vm_list(&recorded[..table]) == vm_list(&output), "output", &recorded[..table], &output);
        let listed: BTreeSet<String> =
            recorded[table..].lines().skip(1).filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect();
        let list = self.api("GET", "/nodes/pve1/qemu", Value::Null).json();
        let now: BTreeSet<String> = list["data"].as_array().into_iter().flatten().map(|vm| vm["vmid"].to_string()).collect();
        found.extend(unless(listed == now, "qm list", &format!("{listed:?}"), &format!("{now:?}")));
        let errors = text(record.stderr.as_ref());
        let refused = String::from_utf8_lossy(&done.stderr).contains("File exists") && errors.contains("File exists");
        found.extend(unless(refused, "cp", errors, &String::from_utf8_lossy(&done.stderr)));
        for answer in [
            self.api("GET", "/nodes/pve1/qemu/700/config", Value::Null),
            self.api("POST", "/nodes/pve1/qemu/700/clone", json!({"newid": 701})),
        ] {
            let message = answer.json()["message"].as_str().unwrap_or_default().trim_end().to_owned();
            found.extend(unless(!message.is_empty() && errors.contains(&message), "refusal", errors, &message));
        }
        self.shell("rm -r /etc/pve/nodes/pve2");
        found.extend(self.same_list(text(record.files_changed.get("/etc/pve/.vmlist"))));
        found
    }
}
