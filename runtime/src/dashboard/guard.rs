//! Whether a request is this machine's own, by what browsers say of it.
//!
//! A page of another site cannot be kept from sending requests to loopback; its browser says where they come from.
//!
//! 1. A request names this machine as its own user does (`127.0.0.1`, `localhost` or `[::1]`, with the port): one by another name came
//!    here because somebody's name server said so (DNS rebinding), and its page would be of the same origin as the answer.
//! 2. A request of which the browser says that another site's page made it is refused; only the page that a link opens may be led
//!    to from anywhere, for a link in a chat is led to so.
//! 3. What changes who may watch (`POST`) says where it comes from, and that is here.

use actix_web::http::header::{HOST, HeaderMap, HeaderName, ORIGIN};
use actix_web::http::{Method, Uri};

/// What browsers say of who makes a request (<https://www.w3.org/TR/fetch-metadata/>).
const SITE: &str = "sec-fetch-site";

/// The page that links lead to.
pub(super) const OPEN: &str = "/open";

/// Where the page is, by every name that its user may have for it.
#[derive(Debug)]
pub(super) struct Here(Vec<String>);

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("this page is at 127.0.0.1, localhost or [::1] with its port, and answers to no other name")]
    Host,
    #[error("another site's page asked, and is told nothing")]
    CrossSite,
}

impl Here {
    pub(super) fn at(port: u16) -> Here {
        let names = ["127.0.0.1", "localhost", "[::1]"];
        // Browsers leave this one out.
        let bare = names.iter().filter(|_| port == 80).map(|name| (*name).to_owned());
        Here(names.iter().map(|name| format!("{name}:{port}")).chain(bare).collect())
    }

    /// # Errors
    /// The request is not this machine's own.
    pub(super) fn judge(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Refused> {
        if !only(headers, &HOST).flatten().is_some_and(|host| self.is_here(host))
            || uri.authority().is_some_and(|host| !self.is_here(host.as_str()))
        {
            return Err(Refused::Host);
        }
        let origin = only(headers, &ORIGIN).ok_or(Refused::CrossSite)?;
        let from_here =
            origin.map(|origin| origin.strip_prefix("http://").is_some_and(|host| self.is_here(host)));
        let site = only(headers, &HeaderName::from_static(SITE)).ok_or(Refused::CrossSite)?;
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let led_here = *method == Method::GET && uri.path() == OPEN;
        let good = match (from_here, site) {
            (Some(false), _) => false,
            (None, _) if !reads => false,
            (_, None | Some("same-origin")) => true,
            (_, Some("none")) => reads,
            _ => led_here,
        };
        if good { Ok(()) } else { Err(Refused::CrossSite) }
    }

    fn is_here(&self, host: &str) -> bool {
        self.0.iter().any(|name| name.eq_ignore_ascii_case(host))
    }
}

/// The header's value, if it is there at all; `None` where it stands twice or is no text.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Option<&'a str>> {
    let mut values = headers.get_all(name);
    match (values.next(), values.next()) {
        (None, _) => Some(None),
        (Some(value), None) => value.to_str().ok().map(Some),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn judge(method: &str, uri: &str, headers: &[(&'static str, &str)]) -> Result<(), Refused> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        Here::at(7070).judge(&method.parse().unwrap(), &uri.parse().unwrap(), &map)
    }

    const HERE: (&str, &str) = ("host", "127.0.0.1:7070");

    /// Invariant 1.
    #[test]
    fn another_name_for_this_machine_is_refused() {
        for host in ["127.0.0.1:7070", "localhost:7070", "LocalHost:7070", "[::1]:7070"] {
            assert_eq!(judge("GET", "/x/", &[("host", host)]), Ok(()), "{host}");
        }
        for host in
            ["rebound.example", "rebound.example:7070", "127.0.0.1", "127.0.0.1:7071", "127.0.0.2:7070", ""]
        {
            assert_eq!(judge("GET", "/x/", &[("host", host)]), Err(Refused::Host), "{host}");
        }
        assert_eq!(judge("GET", "/x/", &[]), Err(Refused::Host), "none");
        assert_eq!(judge("GET", "/x/", &[HERE, HERE]), Err(Refused::Host), "two");
        assert_eq!(judge("GET", "http://rebound.example/x/", &[HERE]), Err(Refused::Host));
        assert_eq!(judge("GET", "http://127.0.0.1:7070/x/", &[HERE]), Ok(()));
    }

    #[test]
    fn the_port_that_browsers_leave_out_may_be_left_out() {
        let there = |port| Here::at(port).is_here("localhost");
        assert!(there(80) && !there(8080) && Here::at(80).is_here("127.0.0.1:80"));
    }

    /// Invariant 2.
    #[test]
    fn another_sites_page_is_refused() {
        for site in ["cross-site", "same-site", "anything"] {
            let site = ("sec-fetch-site", site);
            assert_eq!(judge("GET", "/x/", &[HERE, site]), Err(Refused::CrossSite));
            assert_eq!(judge("GET", "/x/events", &[HERE, site]), Err(Refused::CrossSite));
            assert_eq!(judge("GET", "/open", &[HERE, site]), Ok(()), "a link may stand anywhere");
            assert_eq!(judge("POST", "/open", &[HERE, site]), Err(Refused::CrossSite));
        }
        for origin in ["https://evil.example", "null", "http://127.0.0.1:7071", "https://127.0.0.1:7070", ""]
        {
            let headers = [HERE, ("origin", origin)];
            assert_eq!(judge("GET", "/x/events", &headers), Err(Refused::CrossSite), "{origin}");
            assert_eq!(judge("GET", "/open", &headers), Err(Refused::CrossSite), "{origin}");
        }
        for site in ["same-origin", "none"] {
            assert_eq!(judge("GET", "/x/events", &[HERE, ("sec-fetch-site", site)]), Ok(()));
            assert_eq!(judge("HEAD", "/x/", &[HERE, ("sec-fetch-site", site)]), Ok(()), "it reads, too");
        }
    }

    /// Invariant 3.
    #[test]
    fn what_changes_who_may_watch_comes_from_here() {
        let origin = ("origin", "http://127.0.0.1:7070");
        let same = ("sec-fetch-site", "same-origin");
        assert_eq!(judge("POST", "/session", &[HERE, origin, same]), Ok(()));
        assert_eq!(judge("POST", "/session", &[HERE, origin]), Ok(()), "a browser of before");
        assert_eq!(judge("POST", "/session", &[HERE]), Err(Refused::CrossSite), "from nowhere");
        assert_eq!(judge("POST", "/session", &[HERE, same]), Err(Refused::CrossSite));
        assert_eq!(judge("POST", "/session", &[HERE, origin, origin]), Err(Refused::CrossSite));
        assert_eq!(
            judge("POST", "/session", &[HERE, origin, ("sec-fetch-site", "none")]),
            Err(Refused::CrossSite)
        );
    }
}
