//! quinn's settings, from ours.

use std::sync::Arc;

use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig as QuicConfig, VarInt};

use super::BindError;
use super::congestion::CappedCubic;
use super::sieve::{CidKey, Generator};
use crate::config::TransportConfig;

/// Most bytes of messages that a connection may hold before it is admitted.
const UNADMITTED_WINDOW: u32 = 64 * 1024;
/// Bytes kept of a handshake that has not begun: a ClientHello with a post-quantum key share is 2 KiB.
pub(super) const PENDING_BUFFER: u64 = 16 * 1024;
/// First guess of the datagram size on loopback. quinn-proto asserts that packets with long headers stay
/// below 16,383 bytes; discovery goes further later.
const LOOPBACK_INITIAL_MTU: u16 = 16_000;
/// First guess of the datagram size elsewhere: what QUIC promises of every path.
const SAFE_INITIAL_MTU: u16 = 1_200;
/// Datagrams that may be sent before the first acknowledgement (RFC 9002, section 7.2). quinn's default is a
/// number of bytes below one jumbo datagram, with which a connection never begins.
const INITIAL_WINDOW: u64 = 10;
/// One unidirectional stream a side: it carries credit.
const CREDIT_STREAMS: u32 = 1;

/// Settings of a connection before it is admitted, with at most `in_flight` bytes sent and not acknowledged;
/// [`admit`] lets it have streams, and [`window`] is what it may hold once its peer is heard.
pub(super) fn quic(config: &TransportConfig, in_flight: usize) -> Result<QuicConfig, BindError> {
    let idle = IdleTimeout::try_from(config.idle_timeout)
        .map_err(|_| BindError::Config(format!("idle_timeout of {:?} is too long", config.idle_timeout)))?;
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(config.mtu);
    let guess = if config.listen.ip().is_loopback() { LOOPBACK_INITIAL_MTU } else { SAFE_INITIAL_MTU };
    let initial_mtu = guess.min(config.mtu);
    let initial_window = INITIAL_WINDOW * u64::from(initial_mtu);
    let congestion = CappedCubic::new(initial_window, in_flight as u64);
    let window = window(config);
    let mut quic = QuicConfig::default();
    quic.max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(CREDIT_STREAMS))
        .receive_window(VarInt::from_u32(UNADMITTED_WINDOW))
        .stream_receive_window(window)
        .send_window(window.into_inner())
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(config.keep_alive))
        .initial_mtu(initial_mtu)
        .congestion_controller_factory(Arc::new(congestion))
        .mtu_discovery_config(Some(discovery))
        .datagram_receive_buffer_size(None)
        .allow_spin(false);
    Ok(quic)
}

/// Settings of the endpoint itself.
pub(super) fn endpoint(config: &TransportConfig, key: CidKey) -> Result<EndpointConfig, BindError> {
    let mut endpoint = EndpointConfig::default();
    // The sieve tells our packets by their ids, and knows one version, whose second bit is set.
    endpoint
        .cid_generator(move || Box::new(Generator::new(key)))
        .supported_versions(vec![1])
        .grease_quic_bit(false);
    endpoint
        .max_udp_payload_size(config.mtu)
        .map_err(|_| BindError::Config(format!("mtu of {} is out of bounds", config.mtu)))?;
    Ok(endpoint)
}

/// Lets the peer of an authenticated connection open streams, and have on its way what it may before it is heard.
pub(super) fn admit(connection: &quinn::Connection, config: &TransportConfig) {
    connection.set_receive_window(window(config).min(VarInt::from_u32(config.unheard)));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(config.max_streams));
}

// Room for everything that credit allows, of both classes, and for the credit stream: an honest peer is held
// back by credit alone, so data that nobody reads cannot stop control, and priorities decide what goes first.
pub(super) fn window(config: &TransportConfig) -> VarInt {
    let credit = config.control_credit.bytes.saturating_add(config.data_credit.bytes);
    VarInt::from_u64(credit.saturating_add(UNADMITTED_WINDOW.into())).unwrap_or(VarInt::MAX)
}
