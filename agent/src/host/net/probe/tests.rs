//! On real links: veth pairs and bridges in network namespaces that live as long as a test's threads.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "the links are made with iproute2")]

use std::{future::Future, process::Command, sync::mpsc, thread};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Pid, gettid},
};

use super::*;

const TOKEN: &str = "0123456789abcdef";
/// Far longer than anything takes: a test that waits for it has failed.
const LONG: Duration = Duration::from_secs(30);
/// Enough for what is answered, where something else is not and the whole time is waited.
const ENOUGH: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(150);

/// A thread in a network namespace of its own.
struct Namespace {
    thread: Pid,
    jobs: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Namespace {
    fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ready, thread) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ready.send(gettid()).unwrap();
            queue.into_iter().for_each(|job| job());
        });
        Self { thread: thread.recv().unwrap(), jobs }
    }

    /// Begins something there.
    fn start<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
        let (done, result) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(done.send(work())))).unwrap();
        result
    }

    /// Begins something asynchronous there.
    fn spawn<T: Send + 'static, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send + 'static) -> mpsc::Receiver<T> {
        self.start(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work()))
    }

    fn run<T: Send + 'static, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send + 'static) -> T {
        self.spawn(work).recv().unwrap()
    }

    /// `ip` with each of these lines; `{peer}` is the other namespace.
    fn ip(&self, peer: &Self, lines: &str) {
        let lines = lines.replace("{peer}", &peer.thread.to_string());
        self.start(move || {
            for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
                let output = Command::new("ip").args(line.split_ascii_whitespace()).output().unwrap();
                assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
            }
        })
        .recv()
        .unwrap();
    }
}

fn link(name: &str, mtu: u32) -> KernelLink {
    KernelLink { name: name.into(), mtu, ..Default::default() }
}

/// Two ends of one cable, `a` and `b`, of this MTU; neither has an IPv6 address of its own making.
fn cable(mtu: u32) -> (Namespace, Namespace) {
    let (a, b) = (Namespace::new(), Namespace::new());
    a.ip(
        &b,
        &format!(
            "link add name a mtu {mtu} address 02:00:00:00:00:0a type veth peer name b mtu {mtu} address 02:00:00:00:00:0b netns {{peer}}
             link set dev a addrgenmode none
             link set dev a up"
        ),
    );
    b.ip(&a, "link set dev b addrgenmode none\n link set dev b up");
    (a, b)
}

/// The same with a bridge of another MTU in between, in the first one's namespace.
fn over_a_bridge(mtu: u32, between: u32) -> (Namespace, Namespace) {
    let (a, b) = (Namespace::new(), Namespace::new());
    a.ip(
        &b,
        &format!(
            "link add name br type bridge forward_delay 0
             link add name a mtu {mtu} type veth peer name p1 mtu {between}
             link add name p2 mtu {between} type veth peer name b mtu {mtu} netns {{peer}}
             link set dev p1 master br
             link set dev p2 master br
             link set dev br up
             link set dev p1 up
             link set dev p2 up
             link set dev a up"
        ),
    );
    b.ip(&a, "link set dev b up");
    (a, b)
}

/// Lets the other end answer in the background until the value is dropped. Returns once it does.
fn answering(far: &Namespace, far_name: &'static str, near: &Namespace, near_name: &'static str) -> tokio::sync::oneshot::Sender<()> {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    far.spawn(move || async move {
        let link = link(far_name, 0);
        tokio::select! {
            _ = stopped => {}
            ended = answer(&link, TOKEN, LONG * 4) => panic!("it was to answer until told to stop: {ended:?}"),
        }
    });
    assert_eq!(sent(near, link(near_name, 1280), &[1280], LONG).answers, 1);
    stop
}

fn sent(namespace: &Namespace, link: KernelLink, mtus: &'static [u32], timeout: Duration) -> Probed {
    namespace.run(move || async move { send(&link, TOKEN, mtus, timeout).await.unwrap() })
}

#[test]
fn two_ends_of_a_link_answer_each_other_at_every_size() {
    let (a, b) = cable(9000);
    for (near, far, near_name, far_name) in [(&a, &b, "a", "b"), (&b, &a, "b", "a")] {
        let answerer = answering(far, far_name, near, near_name);
        let probed = sent(near, link(near_name, 9000), &[1280, 1500, 9000], LONG);
        assert_eq!((probed.answers, probed.largest_mtu), (3, 9000));
        assert!(probed.rtt > Duration::ZERO && probed.rtt < LONG, "{probed:?}");
        drop(answerer);
    }
}

#[test]
fn a_size_above_the_links_own_is_not_sent() {
    let (a, b) = cable(1500);
    let answerer = answering(&b, "b", &a, "a");
    // Nothing is left to wait for once the others were answered.
    assert_eq!(sent(&a, link("a", 1500), &[1501, 9000], LONG), Probed::default());
    let probed = sent(&a, link("a", 1500), &[1500, 9000], LONG);
    assert_eq!((probed.answers, probed.largest_mtu), (1, 1500));
    drop(answerer);
}

#[test]
fn a_size_that_does_not_pass_a_bridge_in_between_is_not_reported() {
    let (a, b) = over_a_bridge(9000, 1500);
    let answerer = answering(&b, "b", &a, "a");
    let probed = sent(&a, link("a", 9000), &[1280, 1500, 9000], ENOUGH);
    assert_eq!((probed.answers, probed.largest_mtu), (2, 1500));
    drop(answerer);
}

#[test]
fn nobody_or_another_token_gives_no_answer_in_time() {
    let (a, b) = cable(1500);
    let begun = std::time::Instant::now();
    assert_eq!(sent(&a, link("a", 1500), &[1500], SHORT), Probed::default());
    let answerer = answering(&b, "b", &a, "a");
    let other = a.run(|| async { send(&link("a", 1500), "fedcba9876543210", &[1500], SHORT).await.unwrap() });
    assert_eq!(other, Probed::default());
    assert!(begun.elapsed() >= SHORT * 2 && begun.elapsed() < LONG);
    drop(answerer);
}

#[test]
fn an_answerer_answers_each_probe_once_and_nothing_else() {
    let (a, b) = cable(1500);
    let counted = b.spawn(|| async { answer(&link("b", 1500), TOKEN, ENOUGH * 3).await.unwrap() });
    let answers = a.run(|| async {
        let (interface, socket) = open(&link("a", 1500)).await.unwrap();
        let probe = |sequence| Frame { from: interface.mac, to: EthernetAddress::BROADCAST, kind: Kind::Probe, sequence, mtu: 600 };
        let good = |sequence| probe(sequence).encode(TOKEN).unwrap();
        let mut broken = good(7);
        broken[40] ^= 1;
        let junk = [
            broken,
            good(8)[..500].to_vec(),
            probe(9).encode("fedcba9876543210").unwrap(),
            // An answer that nobody asked for, and one that would send the answer to everybody.
            Frame { kind: Kind::Answer, ..probe(10) }.encode(TOKEN).unwrap(),
            Frame { from: EthernetAddress::BROADCAST, ..probe(11) }.encode(TOKEN).unwrap(),
            // Meant for another host.
            Frame { to: EthernetAddress([2, 0, 0, 0, 0, 0x77]), ..probe(12) }.encode(TOKEN).unwrap(),
        ];
        let (mut buffer, mut answers) = (vec![0; MAX_FRAME], Vec::new());
        // The first one until it is answered: the other end may not listen yet.
        let end = std::time::Instant::now() + LONG;
        while answers.is_empty() {
            assert!(std::time::Instant::now() < end, "nobody answers");
            assert!(socket.send(&good(1)).unwrap());
            let answer = tokio::time::timeout(Duration::from_millis(20), socket.receive(&mut buffer)).await;
            answers.extend(answer.ok().map(|bytes| Frame::decode(bytes.unwrap(), TOKEN).unwrap()));
        }
        for frame in [junk.to_vec(), vec![good(1), good(2), good(2), good(1), good(3)]].concat() {
            assert!(socket.send(&frame).unwrap());
        }
        while answers.len() < 3 {
            let bytes = tokio::time::timeout(LONG, socket.receive(&mut buffer)).await.expect("all are answered").unwrap();
            answers.push(Frame::decode(bytes, TOKEN).unwrap());
        }
        let more = tokio::time::timeout(SHORT, socket.receive(&mut buffer)).await;
        assert!(more.is_err(), "{more:?}");
        answers
    });
    let (mac, peer) = (EthernetAddress([2, 0, 0, 0, 0, 0xa]), EthernetAddress([2, 0, 0, 0, 0, 0xb]));
    let expected = |sequence| Frame { from: peer, to: mac, kind: Kind::Answer, sequence, mtu: 600 };
    assert_eq!(answers, [expected(1), expected(2), expected(3)]);
    assert_eq!(counted.recv().unwrap(), 3);
}

#[test]
fn an_address_that_somebody_has_is_found_by_arp_and_neighbour_solicitation() {
    for link_local in [true, false] {
        let (a, b) = cable(1500);
        a.ip(&b, "address add 192.0.2.1/24 dev a\n address add 2001:db8::1/64 dev a nodad");
        if link_local {
            a.ip(&b, "address add fe80::a/64 dev a nodad");
        }
        b.ip(&a, "address add 192.0.2.2/24 dev b\n address add 2001:db8::2/64 dev b nodad\n address add fe80::b/64 dev b nodad");
        let addresses = ["192.0.2.2", "2001:db8::2", "fe80::b"].map(|t| t.parse::<IpAddr>().unwrap());
        let held: BTreeMap<IpAddr, String> = addresses.iter().map(|a| (*a, "02:00:00:00:00:0b".to_owned())).collect();

        // All are answered: it does not wait for the end.
        let begun = std::time::Instant::now();
        let found = a.run(move || async move { who_has(&link("a", 1500), &addresses, LONG).await.unwrap() });
        assert_eq!(found, held, "link-local address: {link_local}");
        assert!(begun.elapsed() < LONG);

        // Nobody has these; the last two are its own.
        let others = ["192.0.2.3", "2001:db8::3", "192.0.2.1", "2001:db8::1"].map(|t| t.parse::<IpAddr>().unwrap());
        let all = [&addresses[..], &others[..]].concat();
        let found = a.run(move || async move { who_has(&link("a", 1500), &all, ENOUGH).await.unwrap() });
        assert_eq!(found, held, "link-local address: {link_local}");

        // Nobody learned an IPv4 address from it: where the other end never sent anything, it knows nobody.
        let known = b.start(|| Command::new("ip").args(["-4", "neighbour"]).output().unwrap().stdout).recv().unwrap();
        assert_eq!(String::from_utf8(known).unwrap(), "");
    }
}

#[test]
fn this_hosts_own_answer_over_another_link_does_not_count() {
    let (a, b) = (Namespace::new(), Namespace::new());
    // Both ends of the cable are this host's, as a bridge and a probe's port on it are.
    a.ip(
        &b,
        "link add name a type veth peer name b
         address add 192.0.2.2/24 dev b
         address add 2001:db8::2/64 dev b nodad
         link set dev a up
         link set dev b up",
    );
    let addresses = ["192.0.2.2", "2001:db8::2"].map(|t| t.parse().unwrap());
    let found = a.run(move || async move { who_has(&link("a", 1500), &addresses, SHORT).await.unwrap() });
    assert_eq!(found, BTreeMap::new());
}

#[test]
fn many_addresses_are_asked_for_within_the_time() {
    let (a, b) = cable(1500);
    b.ip(&a, "address add 10.9.0.250/16 dev b\n address add 2001:db8::fa/64 dev b nodad");
    let addresses: Vec<IpAddr> = (0..128u8)
        .flat_map(|i| [IpAddr::from([10, 9, 0, i + 123]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(i) + 123])])
        .collect();
    let found = a.run(move || async move { who_has(&link("a", 1500), &addresses, ENOUGH).await.unwrap() });
    let held: Vec<_> = found.keys().map(ToString::to_string).collect();
    assert_eq!(held, ["10.9.0.250", "2001:db8::fa"]);
}

#[test]
fn a_link_that_is_missing_or_goes_away_is_an_error() {
    let (a, b) = cable(1500);
    let missing = a.run(|| async { send(&link("none", 1500), TOKEN, &[1500], LONG).await.unwrap_err() });
    assert!(matches!(&missing, Error::InterfaceNotFound { interface } if interface == "none"), "{missing}");
    let missing = a.run(|| async { who_has(&link("none", 1500), &["192.0.2.1".parse().unwrap()], LONG).await.unwrap_err() });
    assert!(matches!(missing, Error::InterfaceNotFound { .. }), "{missing}");
    let no_mac = a.run(|| async { answer(&link("lo", 65_536), TOKEN, LONG).await.unwrap_err() });
    assert!(matches!(&no_mac, Error::NetworkFailed { message } if message.contains("lo")), "{no_mac}");

    // Taken down while it waits.
    let waiting = a.spawn(|| async {
        let (interface, socket) = open(&link("a", 1500)).await.unwrap();
        let mut buffer = [0; 100];
        let error = tokio::join!(socket.receive(&mut buffer), async {
            assert!(Command::new("ip").args(["link", "set", "dev", "a", "down"]).status().unwrap().success());
        });
        interface.failed(&error.0.unwrap_err())
    });
    let error = waiting.recv().unwrap();
    assert!(matches!(&error, Error::NetworkFailed { message } if message.contains('a')), "{error}");
    let down = a.run(|| async { send(&link("a", 1500), TOKEN, &[1500], LONG).await.unwrap_err() });
    assert!(matches!(down, Error::NetworkFailed { .. }), "{down}");
    drop(b);
}
