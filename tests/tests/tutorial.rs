//! `docs/tutorial.md`, followed word by word: its commands on three machines that are network namespaces, its files as it has them,
//! and what it shows held to what was printed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

use testudo_tests::machines::Machines;
use testudo_tests::page::{Block, Kind, blocks, is_shown};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// As the page has them.
const MACHINES: [(&str, &str); 3] = [("a", "192.0.2.1"), ("b", "192.0.2.2"), ("c", "192.0.2.3")];

fn page() -> Vec<Block> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/tutorial.md")).unwrap();
    blocks(&page).unwrap_or_else(|why| panic!("docs/tutorial.md, {why}"))
}

/// Nothing is on the machines but `testudo` and what every system has; what the page does not say is not done. It takes a quarter of
/// a minute, because the page trains twice, until something is learnt.
#[test]
fn the_tutorial_can_be_followed_word_by_word() {
    let page = page();
    let Some(mut machines) = Machines::start(PROGRAM, &MACHINES) else { return };
    let mut printed = String::new();
    for Block { line, kind, text } in &page {
        let place = format!("docs/tutorial.md, line {line}");
        match kind {
            Kind::File { machine, name, below: None } => machines.write(machine, name, text),
            Kind::File { machine, name, below: Some(above) } => {
                let file = std::fs::read_to_string(machines.cwd(machine).join(name)).unwrap();
                let (start, end) =
                    file.split_once(&format!("{above}\n")).unwrap_or_else(|| panic!("{place}: {file}"));
                machines.write(machine, name, &format!("{start}{above}\n{text}{end}"));
            }
            Kind::Commands { machine, terminal: Some(terminal) } => machines.open(machine, terminal, text),
            Kind::Commands { machine, terminal: None } => {
                let (status, output) = machines.run(machine, text);
                let all = || machines.all_shown();
                assert!(status.success(), "{place}, on {machine}: {status}:\n{text}\n{output}\n{}", all());
                printed = output;
            }
            Kind::Shown { terminal: None, .. } => {
                assert!(is_shown(text, &printed), "{place} shows\n{text}\nand this was printed:\n{printed}");
            }
            Kind::Shown { terminal: Some(terminal), ends } => {
                let among = format!("...\n{text}...\n");
                if *ends {
                    let (status, shown) = machines.ended(terminal);
                    let all = || machines.all_shown();
                    assert!(status.success(), "{place}, {terminal}: {status}:\n{shown}\n{}", all());
                    assert!(
                        is_shown(&among, &shown),
                        "{place} shows\n{text}\nand this was printed:\n{shown}"
                    );
                } else {
                    machines.until(terminal, |shown| is_shown(&among, shown));
                }
            }
        }
    }
    let open = machines.open_terminals();
    assert!(open.is_empty(), "the page does not say how {open:?} end");
}

/// The page is about three machines, shows what most commands print, and says how each terminal ends.
#[test]
fn the_tutorial_is_as_its_test_needs_it() {
    let page = page();
    for (machine, _) in MACHINES {
        let has = |block: &Block| matches!(&block.kind, Kind::Commands { machine: on, .. } if on == machine);
        assert!(page.iter().any(has), "nothing is done on {machine}");
    }
    let shown = page.iter().filter(|block| matches!(block.kind, Kind::Shown { .. })).count();
    let commands = page.iter().filter(|block| matches!(block.kind, Kind::Commands { .. })).count();
    assert!(2 * shown >= commands, "{commands} blocks of commands, and what {shown} print");
    let solid = |block: &&Block| !block.text.lines().all(|line| line.trim() == "...");
    let shown = page.iter().filter(|block| matches!(block.kind, Kind::Shown { .. }));
    assert!(shown.into_iter().all(|block| solid(&block)), "a block shows nothing");
}

#[test]
fn what_is_printed_otherwise_is_noticed() {
    for (shown, printed) in [
        ("one\ntwo\n", "one\ntwo\n"),
        ("one\n...\n", "one\ntwo\nthree"),
        ("one\n...\n", "one"),
        ("...\nthree", "one\ntwo\nthree"),
        ("...\ntwo\n...\nfour", "one\ntwo\nthree\nfour"),
        ("took ... s", "took 1.25 s"),
        ("... of ...: done", "3 of 4: done"),
        ("a...b...c", "a b b c"),
        ("hash ...\n...\nend\n", "hash 12\nend"),
    ] {
        assert!(is_shown(shown, printed), "{shown:?} {printed:?}");
    }
    for (shown, printed) in [
        ("one\ntwo\n", "one\n"),
        ("one\n", "one\ntwo\n"),
        ("one\n...\n", "two\none\n"),
        ("...\ntwo\n...\nfour", "one\nfour\nthree\ntwo"),
        ("...\ntwo\n...\ntwo", "one\ntwo"),
        ("took ... s", "took 1.25 ms."),
        ("ab...bc", "abc"),
        ("", "something"),
    ] {
        assert!(!is_shown(shown, printed), "{shown:?} {printed:?}");
    }
}

#[test]
fn fences_say_what_is_done() {
    let page = "x\n```sh machine=a\ncd\n```\n```text\n~\n```\n```toml file=f machine=b\nk = 1\n```\n```rust\n```\n\
                ```sh machine=c terminal=t\nwait\n```\n```text terminal=t ends\nover\n```\n";
    let found = blocks(page).unwrap();
    let kinds: Vec<&Kind> = found.iter().map(|block| &block.kind).collect();
    let commands = |machine: &str, terminal: Option<&str>| Kind::Commands {
        machine: machine.into(),
        terminal: terminal.map(str::to_owned),
    };
    let shown = |terminal: Option<&str>, ends| Kind::Shown { terminal: terminal.map(str::to_owned), ends };
    let file = Kind::File { machine: "b".into(), name: "f".into(), below: None };
    let wanted = [
        &commands("a", None),
        &shown(None, false),
        &file,
        &commands("c", Some("t")),
        &shown(Some("t"), true),
    ];
    assert_eq!(kinds, wanted);
    assert_eq!((found[0].line, found[0].text.as_str()), (2, "cd\n"));
    for wrong in [
        "```sh\nls\n```",
        "```toml below=k machine=a\n```",
        "```text ends\n```",
        "```sh machin=a\n```",
        "```text\n",
    ] {
        assert!(blocks(wrong).is_err(), "{wrong}");
    }
}
