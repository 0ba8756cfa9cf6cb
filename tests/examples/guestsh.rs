//! scratch
#![allow(clippy::all, clippy::print_stdout, clippy::unwrap_used)]
use pvelet_tests::{Guest, GuestOptions, Segment};
fn main() {
    println!("accel {}", pvelet_tests::guest::accelerator());
    let n: usize = std::env::args().nth(1).map_or(1, |a| a.parse().unwrap());
    let (m, t) = (Segment::new().unwrap(), Segment::new().unwrap());
    let mut guests = vec![];
    for i in 1..=n {
        let at = std::time::Instant::now();
        let g = Guest::boot(GuestOptions { name: format!("pve{i}"), nics: vec![m.clone(), t.clone(), t.clone()], ..Default::default() }).unwrap();
        println!("booted {i} in {:?}", at.elapsed());
        std::fs::write(format!("/tmp/guest/ssh{i}"), format!("exec ssh {} root@127.0.0.1 \"$@\"\n", g.ssh_options().join(" "))).unwrap();
        guests.push(g);
    }
    println!("ready");
    let mut line = String::new();
    loop {
        line.clear();
        if std::io::stdin().read_line(&mut line).unwrap() == 0 { break; }
        let at = std::time::Instant::now();
        match line.trim().split_once(' ') {
            Some(("cut", i)) => { let g = &mut guests[i.parse::<usize>().unwrap() - 1]; g.power_cut(); g.start().unwrap();
        std::fs::write(format!("/tmp/guest/ssh{i}"), format!("exec ssh {} root@127.0.0.1 \"$@\"\n", g.ssh_options().join(" "))).unwrap();
                println!("restarted in {:?}", at.elapsed()); }
            _ => break,
        }
    }
}
