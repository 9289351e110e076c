//! Whether UDP works here, how much the kernel buffers of it, and how large datagrams may be.

use std::net::UdpSocket;
use std::time::Duration;

use rustix::net::sockopt;
use testudo_transport::TransportConfig;

use super::PLACE;
use crate::doctor::Report;

/// The datagrams that every path of QUIC must carry, in bytes (RFC 9000, section 14).
const DATAGRAM: usize = 1200;
/// The headers of IPv6 and UDP.
const HEADERS: u32 = 40 + 8;
/// How long a datagram may take from this process to itself.
const PATIENCE: Duration = Duration::from_secs(2);
/// Interfaces that are looked at: a machine with many containers has one for each.
const INTERFACES_MOST: usize = 16;

/// What was found out.
#[derive(Debug)]
pub(super) struct Readings {
    /// What a socket on loopback got, or why there is none.
    udp: Result<Buffers, String>,
    /// Name and MTU of each interface that is up, loopback left out.
    interfaces: Vec<(String, u32)>,
}

/// What a socket may buffer, in bytes, when it asks for [`TransportConfig::DEFAULT_SOCKET_BUFFER`].
#[derive(Clone, Copy, Debug)]
struct Buffers {
    receive: usize,
    send: usize,
}

pub(super) fn read() -> Readings {
    Readings { udp: udp().map_err(|e| e.to_string()), interfaces: interfaces() }
}

/// Sends a datagram to itself, and asks for the buffers that nodes ask for: what a socket gets is told in containers, too, where the
/// kernel's settings are not.
fn udp() -> std::io::Result<Buffers> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let asked = TransportConfig::DEFAULT_SOCKET_BUFFER;
    sockopt::set_socket_recv_buffer_size(&socket, asked)?;
    sockopt::set_socket_send_buffer_size(&socket, asked)?;
    // Linux says twice what it grants: the other half is for its own use (socket(7)).
    let receive = sockopt::socket_recv_buffer_size(&socket)? / 2;
    let send = sockopt::socket_send_buffer_size(&socket)? / 2;
    socket.set_read_timeout(Some(PATIENCE))?;
    // Connected to itself, it hears nobody else.
    socket.connect(socket.local_addr()?)?;
    socket.send(&[0; DATAGRAM])?;
    let mut buffer = [0; DATAGRAM + 1];
    let length = socket.recv(&mut buffer)?;
    match length == DATAGRAM {
        true => Ok(Buffers { receive, send }),
        false => {
            Err(std::io::Error::other(format!("a datagram of {DATAGRAM} bytes came as one of {length}")))
        }
    }
}

fn interfaces() -> Vec<(String, u32)> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else { return Vec::new() };
    let mut found: Vec<(String, u32)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).ok();
            let is_up = matches!(read("operstate")?.trim(), "up" | "unknown");
            let mtu = read("mtu")?.trim().parse().ok()?;
            (is_up && name != "lo").then_some((name, mtu))
        })
        .collect();
    found.sort();
    found.truncate(INTERFACES_MOST);
    found
}

pub(super) fn judge(report: &mut Report, readings: &Readings) {
    match &readings.udp {
        Ok(buffers) => {
            report.good(PLACE, format!("UDP: {DATAGRAM} bytes travel over loopback"));
            buffered(report, "net.core.rmem_max", "receive", buffers.receive);
            buffered(report, "net.core.wmem_max", "send", buffers.send);
        }
        Err(why) => {
            let what = format!("UDP does not work over loopback, and nodes speak nothing else: {why}");
            let fix =
                "let UDP through on the interface lo (nft list ruleset), and bring it up: ip link set lo up";
            report.problem(PLACE, what, fix);
        }
    }
    let (narrow, wide): (Vec<_>, Vec<_>) =
        readings.interfaces.iter().partition(|(_, mtu)| (*mtu as usize) < DATAGRAM + HEADERS as usize);
    for (name, mtu) in narrow {
        let what = format!(
            "{name} carries {mtu} bytes: QUIC's datagrams of {DATAGRAM} bytes do not pass (RFC 9000)"
        );
        let fix = format!("ip link set {name} mtu 1280, or more; right as it is if no node is reached by it");
        report.warning(PLACE, what, fix);
    }
    if !wide.is_empty() {
        let each: Vec<String> = wide.iter().map(|(name, mtu)| format!("{name} {mtu}")).collect();
        report.good(
            PLACE,
            format!("MTU: {} (nodes find out what a path carries, up to network.mtu)", each.join(", ")),
        );
    }
}

/// The kernel caps what a process may ask for its sockets.
fn buffered(report: &mut Report, setting: &str, verb: &str, got: usize) {
    let asked = TransportConfig::DEFAULT_SOCKET_BUFFER;
    if got < asked {
        let what = format!(
            "a socket gets {} KiB to {verb} with, of {} KiB that nodes ask for ({setting}): bursts of datagrams will be lost, which \
             costs speed",
            got >> 10,
            asked >> 10
        );
        report.warning(
            PLACE,
            what,
            format!("sysctl -w {setting}={asked} (on the host, if this is a container)"),
        );
    } else {
        report.good(PLACE, format!("a socket gets {} KiB to {verb} with ({setting})", got >> 10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Finding, Severity};

    fn found(readings: Readings) -> Vec<Finding> {
        let mut report = Report::default();
        judge(&mut report, &readings);
        report.findings
    }

    #[test]
    fn a_machine_without_udp_has_a_problem() {
        let all = found(Readings { udp: Err("permission denied".into()), interfaces: Vec::new() });
        assert!(
            matches!(&*all, [one] if one.severity == Severity::Problem && one.what.ends_with("permission denied")),
            "{all:?}"
        );
    }

    #[test]
    fn small_buffers_and_narrow_links_are_warned_of_with_what_to_set() {
        let asked = TransportConfig::DEFAULT_SOCKET_BUFFER;
        let udp = Ok(Buffers { receive: 212_992, send: asked });
        let interfaces = vec![("eth0".into(), 1500), ("tun0".into(), 1247), ("tun1".into(), 1248)];
        let all = found(Readings { udp, interfaces });
        let warned: Vec<&Finding> = all.iter().filter(|f| f.severity != Severity::Good).collect();
        let [buffer, link] = &*warned else { panic!("{all:?}") };
        assert!(
            buffer.what.contains("208 KiB to receive") && buffer.fix.contains("net.core.rmem_max=4194304")
        );
        assert!(link.what.starts_with("tun0 carries 1247") && link.fix.contains("set tun0 mtu"), "{link:?}");
        assert!(all.iter().any(|f| f.what.starts_with("MTU: eth0 1500, tun1 1248")), "{all:?}");
    }

    #[test]
    fn this_machine_can_be_read() {
        let readings = read();
        assert!(readings.udp.is_ok_and(|buffers| buffers.receive > 0 && buffers.send > 0));
    }
}
