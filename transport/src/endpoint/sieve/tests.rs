use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use proptest::prelude::*;
use quinn_proto::ConnectionIdGenerator as _;
use socket2::{SockFilter, Socket};

use super::packet::{Kind, kind};
use super::*;

const KEY: [u8; 12] = [3, 141, 59, 26, 53, 58, 97, 93, 23, 84, 62, 64];

fn key() -> CidKey {
    CidKey::new(KEY)
}

fn ours() -> Vec<u8> {
    Generator::new(key()).generate_cid().to_vec()
}

/// A packet with a long header, filled up to `len` bytes.
fn long(kind: u8, version: u32, cid: &[u8], len: usize) -> Vec<u8> {
    let mut packet = vec![0xc0 | kind];
    packet.extend(version.to_be_bytes());
    packet.push(cid.len() as u8);
    packet.extend(cid);
    packet.resize(len.max(packet.len()), 0);
    packet
}

fn short(cid: &[u8]) -> Vec<u8> {
    [&[0x41], cid, &[7; 30]].concat()
}

/// What there is of datagrams, each with what it is.
fn samples() -> Vec<(Vec<u8>, Kind)> {
    let new = [5; 12];
    vec![
        (vec![], Kind::Malformed),
        (vec![0x40], Kind::Stray),
        (vec![0x00; 100], Kind::Malformed),
        (short(&ours()), Kind::Ours),
        (short(&ours()).into_iter().take(9).collect(), Kind::Ours),
        (short(&ours()).into_iter().take(8).collect(), Kind::Stray),
        (short(&[9; 8]), Kind::Stray),
        (long(0x00, 1, &ours(), 60), Kind::OursInitial),
        (long(0x10, 1, &ours(), 60), Kind::Malformed),
        (long(0x20, 1, &ours(), 60), Kind::Ours),
        (long(0x30, 1, &ours(), 60), Kind::Ours),
        (long(0x20, 1, &new, 1300), Kind::Malformed),
        (long(0x00, 1, &new, 1200), Kind::Newcomer),
        (long(0x00, 1, &new, 1199), Kind::Malformed),
        (long(0x00, 1, &new, 9000), Kind::Newcomer),
        (long(0x10, 1, &new, 1300), Kind::Malformed),
        (long(0x00, 1, &[5; 8], 1200), Kind::Newcomer),
        (long(0x00, 1, &[5; 7], 1200), Kind::Malformed),
        (long(0x00, 1, &[5; 20], 1200), Kind::Newcomer),
        (long(0x00, 1, &[5; 21], 1200), Kind::Malformed),
        (long(0x00, 2, &new, 1200), Kind::Malformed),
        (long(0x00, 0, &ours(), 1200), Kind::Malformed),
        (vec![0xc0, 0, 0, 0, 1], Kind::Malformed),
        (vec![0xc0, 0, 0, 0, 1, 255], Kind::Malformed),
    ]
}

#[test]
fn datagrams_are_known_by_their_first_bytes() {
    for (datagram, expected) in samples() {
        assert_eq!(kind(key(), &datagram), expected, "{datagram:02x?}");
    }
}

fn passed(kind: Kind) -> bool {
    matches!(kind, Kind::Ours | Kind::OursInitial | Kind::Newcomer)
}

/// Sends datagrams through a socket that runs the program, and tells which of them arrived. On loopback most are there, or dropped,
/// when `send` returns; a busy kernel is later, so at least so many are waited for.
fn through_the_kernel(
    listen: &str,
    program: &[Instruction],
    datagrams: &[Vec<u8>],
    least: usize,
) -> Option<Vec<bool>> {
    let receiver = UdpSocket::bind(listen).ok()?;
    let socket = Socket::from(receiver.try_clone().unwrap());
    let filter: Vec<SockFilter> =
        program.iter().map(|i| SockFilter::new(i.code, i.if_true, i.if_false, i.operand)).collect();
    socket.attach_filter(&filter).unwrap();
    let sender = UdpSocket::bind(SocketAddr::new(receiver.local_addr().unwrap().ip(), 0)).unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    receiver.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; 1 << 16];
    let mut arrived = vec![false; datagrams.len()];
    let mut take = |arrived: &mut [bool]| {
        let Ok(len) = receiver.recv(&mut buffer) else { return false };
        let is_it = |(sent, arrived): (&Vec<u8>, &bool)| !arrived && sent[..] == buffer[..len];
        let at = datagrams.iter().zip(&*arrived).position(is_it).expect("what arrives was sent");
        arrived[at] = true;
        true
    };
    for datagram in datagrams {
        sender.send(datagram).unwrap();
        while take(&mut arrived) {}
    }
    let until = Instant::now() + Duration::from_secs(60);
    while arrived.iter().filter(|arrived| **arrived).count() < least && Instant::now() < until {
        if !take(&mut arrived) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Some(arrived)
}

/// Invariant 4, on this machine's kernel.
#[test]
fn the_kernel_agrees() {
    let samples = samples();
    let datagrams: Vec<Vec<u8>> = samples.iter().map(|(datagram, _)| datagram.clone()).collect();
    let expected: Vec<bool> = samples.iter().map(|(_, kind)| passed(*kind)).collect();
    let least = expected.iter().filter(|passes| **passes).count();
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        if let Some(arrived) = through_the_kernel(listen, &program(key(), &[], 0), &datagrams, least) {
            assert_eq!(arrived, expected, "{listen}");
        }
    }
}

#[test]
fn the_kernel_knows_the_allowed_networks() {
    let datagrams = [short(&ours())];
    for (listen, allow, expected) in [
        ("127.0.0.1:0", vec!["127.0.0.0/8"], true),
        ("127.0.0.1:0", vec!["10.0.0.0/8", "127.0.0.1/32"], true),
        ("127.0.0.1:0", vec!["10.0.0.0/8", "::/0", "127.0.0.2/32"], false),
        ("127.0.0.1:0", vec!["0.0.0.0/0"], true),
        ("[::1]:0", vec!["10.0.0.0/8", "2001:db8::/32", "::1/128"], true),
        ("[::1]:0", vec!["0.0.0.0/0", "::2/127"], false),
        ("[::1]:0", vec!["::/127"], true),
        ("[::1]:0", vec!["127.0.0.0/8"], false),
    ] {
        let nets: Vec<IpNet> = allow.iter().map(|net| net.parse().unwrap()).collect();
        if let Some(arrived) =
            through_the_kernel(listen, &program(key(), &nets, 0), &datagrams, usize::from(expected))
        {
            assert_eq!(arrived, [expected], "{listen} {allow:?}");
        }
    }
}

/// The longest list there may be makes a program that the kernel still takes.
#[test]
fn a_program_for_many_networks_fits() {
    let nets: Vec<IpNet> = (0..64).map(|net| format!("2001:db8:{net}::/48").parse().unwrap()).collect();
    let datagrams = [short(&ours())];
    if let Some(arrived) = through_the_kernel("[::1]:0", &program(key(), &nets, CLOSEST), &datagrams, 0) {
        assert_eq!(arrived, [false]);
    }
    assert!(program(key(), &nets, CLOSEST).len() <= 4096);
}

/// In the kernel's lottery newcomers lose, and connections that live do not.
#[test]
fn halvings_are_for_newcomers_alone() {
    let (new, old) = (long(0x00, 1, &[5; 12], 1200), short(&ours()));
    let run = |halvings, datagram: &Vec<u8>, least| {
        let (program, datagrams) = (program(key(), &[], halvings), vec![datagram.clone(); 2000]);
        let arrived = through_the_kernel("127.0.0.1:0", &program, &datagrams, least);
        arrived.unwrap().into_iter().filter(|arrived| *arrived).count()
    };
    assert_eq!((run(0, &new, 2000), run(12, &old, 2000)), (2000, 2000));
    // 1000 and 125 expected; five standard deviations are 112 and 53.
    assert!((888..=1112).contains(&run(1, &new, 888)) && (72..=178).contains(&run(4, &new, 72)));
}

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Invariants 1 and 2.
#[test]
fn floods_keep_to_their_rates_and_connections_that_live_pass() {
    let mut sieve = Sieve::new(key(), Vec::new(), true, at(0));
    let (new, old, stray) = (long(0x00, 1, &[5; 12], 1200), short(&ours()), short(&[1; 8]));
    let (mut newcomers, mut strays) = (0, 0);
    for packet in 0..50_000 {
        let now = Duration::from_micros(packet * 20);
        newcomers += u32::from(sieve.passes(now, HOME, &new));
        strays += u32::from(sieve.passes(now, HOME, &stray));
        assert!(sieve.passes(now, HOME, &old));
        assert!(!sieve.passes(now, HOME, b"garbage"[..0].as_ref()));
    }
    assert!((INITIALS_OF_ONE.burst..=INITIALS_OF_ONE.burst + 201).contains(&newcomers), "{newcomers}");
    assert!((STRAYS.burst..=STRAYS.burst + 101).contains(&strays), "{strays}");
    let stats = sieve.stats();
    assert_eq!(stats.newcomers, 50_000 - u64::from(newcomers));
    assert_eq!((stats.strays, stats.malformed), (50_000 - u64::from(strays), 50_000));
}

#[test]
fn one_source_does_not_use_up_anothers_rate() {
    let mut sieve = Sieve::new(key(), Vec::new(), true, at(0));
    let new = long(0x00, 1, &[5; 12], 1200);
    for packet in 0..10_000 {
        sieve.passes(Duration::from_micros(packet * 100), HOME, &new);
    }
    let others =
        (1..=50).filter(|last| sieve.passes(at(1000), IpAddr::V4(Ipv4Addr::new(10, 0, 0, *last)), &new));
    assert!(others.count() >= 48, "hashes of fifty addresses met the flood's more than twice");
}

#[test]
fn the_kernel_is_called_in_and_let_go() {
    let mut sieve = Sieve::new(key(), vec!["127.0.0.0/8".parse().unwrap()], true, at(0));
    assert_eq!((sieve.program(), sieve.adjusted(at(0))), (None, false));
    let foreign = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    let flood = |sieve: &mut Sieve, now| {
        for _ in 0..RAISE_AFTER {
            assert!(!sieve.passes(now, foreign, &short(&ours())));
        }
        sieve.adjusted(now)
    };
    assert!(flood(&mut sieve, at(1)));
    assert_eq!(sieve.program(), Some(program(key(), &["127.0.0.0/8".parse().unwrap()], 0)));
    while flood(&mut sieve, at(2)) {}
    assert_eq!(sieve.stats().notch, CLOSEST);
    let quiet = (0..CLOSEST).filter(|second| sieve.adjusted(at(252 + u64::from(*second) * 250)));
    assert_eq!(quiet.count(), CLOSEST as usize);
    assert_eq!((sieve.program(), sieve.adjusted(at(60_000))), (None, false));
    assert_eq!(sieve.stats().not_allowed, u64::from(RAISE_AFTER) * (1 + u64::from(CLOSEST)));
}

proptest! {
    /// Invariant 4 for any bytes, and no bytes make it panic.
    #[test]
    fn the_kernel_agrees_on_anything(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        first in 0u8..=255,
        version in prop_oneof![Just(1u32), any::<u32>()],
        own in any::<bool>(),
        pad in any::<bool>(),
    ) {
        let mut datagram = bytes;
        if first & 0x80 != 0 {
            let cid = if own { ours() } else { datagram.iter().copied().chain([0; 8]).take(9).collect() };
            datagram = long(0, version, &cid, datagram.len());
        } else if own {
            datagram = short(&ours());
        }
        if pad {
            datagram.resize(1200, 1);
        }
        if let Some(byte) = datagram.first_mut() {
            *byte = first;
        }
        let expected = passed(kind(key(), &datagram));
        let least = usize::from(expected);
        let arrived = through_the_kernel("127.0.0.1:0", &program(key(), &[], 0), &[datagram], least).unwrap();
        prop_assert_eq!(arrived, [expected]);
    }
}
