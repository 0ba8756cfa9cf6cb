//! A run of a playbook, and what came of it.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader, PipeReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{control::Control, host::Host};

/// A run that is to be made.
pub struct Play<'a> {
    control: &'a Control,
    name: &'a str,
    inventory: Value,
    more: Vec<String>,
}

/// A run that is under way.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    /// What has been read of it.
    text: String,
}

/// For an event of a play: a task on an emulated host lasts for minutes at worst.
const EVENT: Duration = Duration::from_secs(900);

/// How it ended for one host.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub ok: u32,
    pub changed: u32,
    pub unreachable: u32,
    pub failed: u32,
}

/// How it ended.
pub struct Done {
    pub good: bool,
    pub text: String,
    pub rows: BTreeMap<String, Row>,
}

impl<'a> Play<'a> {
    /// A playbook on these hosts in this mode.
    pub fn new(control: &'a Control, hosts: &[Host], name: &'a str, mode: &str) -> Self {
        Self { control, name, inventory: control.inventory(hosts, mode), more: vec![] }
    }

    /// With another value of a variable.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.inventory["pvelet"]["vars"][key] = value.into();
        self
    }

    /// With another value for one host.
    pub fn set_for(mut self, host: &str, key: &str, value: impl Into<Value>) -> Self {
        self.inventory["pvelet"]["hosts"][host][key] = value.into();
        self
    }

    /// With another name for a host.
    pub fn rename(mut self, from: &str, to: &str) -> Self {
        let hosts = self.inventory["pvelet"]["hosts"].as_object_mut().unwrap();
        let host = hosts.remove(from).unwrap();
        hosts.insert(to.into(), host);
        self
    }

    /// On one host alone.
    pub fn only(mut self, host: &str) -> Self {
        self.inventory["pvelet"]["hosts"].as_object_mut().unwrap().retain(|name, _| name == host);
        self
    }

    /// With an argument more.
    pub fn argument(mut self, argument: &str) -> Self {
        self.more.push(argument.into());
        self
    }

    fn command(&self) -> Command {
        let file = self.control.path(&format!("inventory-{}.json", uuid::Uuid::new_v4().simple()));
        fs::write(&file, self.inventory.to_string()).unwrap();
        let mut command = self.control.ansible();
        command.arg("--inventory").arg(file).args(&self.more).arg(format!("pvelet.pvelet.{}", self.name));
        command
    }

    /// Runs it.
    pub fn run(&self) -> Done {
        if env::var_os("PVELET_ROLLOUT_TIMES").is_some() { self.timed() } else { Done::of(&self.command().output().unwrap()) }
    }

    /// Runs it, and tells how long its slowest tasks took: from one heading to the next.
    fn timed(&self) -> Done {
        let mut child = self.command().stdout(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        let (mut text, mut tasks) = (String::new(), vec![(begun, "start".to_owned())]);
        for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
            if ["PLAY", "TASK", "RUNNING HANDLER"].iter().any(|head| line.starts_with(head)) {
                tasks.push((Instant::now(), line.trim_end_matches(['*', ' ']).to_owned()));
            }
            text.push_str(&line);
            text.push('\n');
        }
        let good = child.wait().unwrap().success();
        let ends = tasks.iter().skip(1).map(|(at, _)| *at).chain([Instant::now()]);
        let mut took: Vec<_> = tasks.iter().zip(ends).map(|((from, name), to)| (to - *from, name)).collect();
        println!("        {} {}: {} s, {} tasks", self.name, if good { "ended" } else { "failed" }, begun.elapsed().as_secs(), took.len());
        took.sort_by(|a, b| b.0.cmp(&a.0));
        for (took, name) in took.iter().take(15) {
            println!("        {:>6.1} s  {name}", took.as_secs_f32());
        }
        Done::new(good, text)
    }

    /// Runs it; it must succeed.
    pub fn must(&self) -> Done {
        let done = self.run();
        assert!(done.good, "{} should have succeeded:\n{}", self.name, done.text);
        done
    }

    /// Begins it, for somebody who does something else meanwhile; [`Running::end`] is how it ended.
    pub fn begin(&self) -> Running {
        let (out, pipe) = std::io::pipe().unwrap();
        let child = self.command().stdout(pipe.try_clone().unwrap()).stderr(pipe).spawn().unwrap();
        Running { child, lines: read(out), text: String::new() }
    }

    /// Runs it; it must fail, and say this.
    pub fn refused(&self, said: &[&str]) -> Done {
        let done = self.run();
        assert!(!done.good, "{} should have been refused ({said:?}):\n{}", self.name, done.text);
        for text in said {
            assert!(done.plain().contains(text), "{} should have said '{text}':\n{}", self.name, done.text);
        }
        done
    }
}

/// What a run prints, line by line, as it comes; read in a thread of its own, so that the run never waits for a reader.
fn read(out: PipeReader) -> Receiver<String> {
    let (send, lines) = channel();
    thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    lines
}

impl Running {
    /// Waits until it prints a line with these words, from where it was read up to.
    pub fn until(&mut self, words: &str) {
        loop {
            let line = self.lines.recv_timeout(EVENT).unwrap_or_else(|e| panic!("'{words}' was never said ({e}):\n{}", self.text));
            self.text += &line;
            self.text.push('\n');
            if line.contains(words) {
                return;
            }
        }
    }

    /// Waits for its end.
    pub fn end(mut self) -> Done {
        for line in &self.lines {
            self.text += &line;
            self.text.push('\n');
        }
        let good = self.child.wait().unwrap().success();
        Done::new(good, self.text)
    }
}

impl Done {
    fn of(out: &std::process::Output) -> Self {
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        Self::new(out.status.success(), text)
    }

    fn new(good: bool, text: String) -> Self {
        // "pve1   : ok=12   changed=3    unreachable=0    failed=0 ..."
        let recap = text.split_once("PLAY RECAP").map_or("", |(_, recap)| recap);
        let row = |line: &str| {
            let (name, fields) = line.split_once(" : ")?;
            let field = |key: &str| fields.split_whitespace().find_map(|f| f.strip_prefix(key)?.strip_prefix('=')?.parse().ok());
            let row = Row { ok: field("ok")?, changed: field("changed")?, unreachable: field("unreachable")?, failed: field("failed")? };
            Some((name.trim().to_owned(), row))
        };
        let rows = recap.lines().filter_map(row).collect();
        Self { good, text, rows }
    }

    /// What it printed, without the breaks and escapes of Ansible's own making.
    pub fn plain(&self) -> String {
        self.text.replace("\\\"", "\"").replace("\\n", "\n").split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Tasks that changed something, over all hosts.
    pub fn changed(&self) -> u32 {
        self.rows.values().map(|r| r.changed).sum()
    }
}
