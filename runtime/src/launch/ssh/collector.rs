//! What nodes on hosts need for an `https://` collector, in the parcel: certificates, and a key, which is a secret as their own is.

use std::path::PathBuf;

use testudo_observability::Opened;
use zeroize::Zeroizing;

use crate::config::Telemetry;

/// What was read for the collector that `telemetry` names, by the names that the files have over there; `telemetry` names them so from here
/// on, and no others. Names stay relative: a host's cluster file lies beside them.
pub(super) fn files(telemetry: &mut Telemetry, told: &Opened) -> Vec<(String, Zeroizing<Vec<u8>>)> {
    let pem = told.pem();
    let client = pem.and_then(|pem| pem.client.as_ref());
    let all = [
        (&mut telemetry.certificate, "collector/ca.pem", pem.and_then(|pem| pem.certificate.as_ref())),
        (&mut telemetry.client_certificate, "collector/cert.pem", client.map(|(certificate, _)| certificate)),
        (&mut telemetry.client_key, "collector/key.pem", client.map(|(_, key)| key)),
    ];
    let mut files = Vec::new();
    for (path, name, pem) in all {
        *path = pem.map(|_| PathBuf::from(name));
        files.extend(pem.map(|pem| (name.to_owned(), Zeroizing::new(pem.as_bytes().to_vec()))));
    }
    files
}

#[cfg(test)]
mod tests {
    use testudo_observability::Environment;
    use testudo_transport::pki::{is_ours, write_public, write_secret};

    use super::*;
    use crate::config::Config;

    #[test]
    fn a_host_finds_them_beside_its_cluster_file() {
        let place = tempfile::tempdir().unwrap();
        let toml = "[job]\nname=\"x\"\n[cluster]\nworkers=1\n[training]\nepochs=1\nbatch_size=8\nlogical_shards=8\n[model]\nkind=\"mlp\"\n\
            inputs=784\nhidden=[8]\nclasses=10\n[optimizer]\nkind=\"sgd\"\nlearning_rate=0.1\n[data]\nkind=\"mnist\"\npath=\"x\"\n\
            [telemetry]\nendpoint=\"https://c:4317\"\ncertificate=\"ca.crt\"\nclient_certificate=\"c.crt\"\nclient_key=\"c.key\"\n";
        let file = place.path().join("cluster.toml");
        std::fs::write(&file, toml).unwrap();
        let made = rcgen::generate_simple_self_signed(["c".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        write_public(&place.path().join("ca.crt"), certificate.as_bytes()).unwrap();
        write_public(&place.path().join("c.crt"), certificate.as_bytes()).unwrap();
        write_secret(&place.path().join("c.key"), key.as_bytes()).unwrap();
        let config = Config::load::<&str>(&file, &[]).unwrap();
        let told = Environment::default().with_settings(config.telemetry.settings());
        let told = told.open_for_others(|source| source.read(is_ours)).unwrap().opened;
        let mut sent = config.clone();
        let parcel = files(&mut sent.telemetry, &told);
        let host = tempfile::tempdir().unwrap();
        std::fs::create_dir(host.path().join("collector")).unwrap();
        for (name, contents) in &parcel {
            std::fs::write(host.path().join(name), contents).unwrap();
        }
        std::fs::write(host.path().join("cluster.toml"), sent.to_toml().unwrap()).unwrap();
        let there = Config::load::<&str>(&host.path().join("cluster.toml"), &[]).unwrap().telemetry;
        for (path, contents) in [
            (there.certificate, &certificate),
            (there.client_certificate, &certificate),
            (there.client_key, &key),
        ] {
            let path = path.unwrap();
            assert!(path.starts_with(host.path()), "{}", path.display());
            assert_eq!(&std::fs::read_to_string(path).unwrap(), contents);
        }
        // Over plain text nothing is read, and nothing sent or named.
        let mut plain = config;
        assert!(files(&mut plain.telemetry, &Opened::default()).is_empty());
        assert_eq!((plain.telemetry.certificate, plain.telemetry.client_key), (None, None));
    }
}
