//! The operator's settings for package installs on this machine: index,
//! certificates, proxies. An installer's sandbox has no environment and no
//! configuration of the host's, so this is all that it gets. Pure, but for
//! [`Operator::from_host`].
//!
//! ```text
//! settings, environment, pip's files ─┬─▶ env, binds   index and certificates, for the sandbox
//!                                     └─▶ policy       the same index and the proxies, for its outlet
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::sandbox::Bind;
use crate::sandbox::outlet::{BadProxy, Place, Policy, Proxies};

/// Path of the operator's certificates in an installer's sandbox.
const CERTIFICATES: &str = "/installer/ca.pem";

/// The operator's settings, as an installer takes them.
#[derive(Clone, Default)]
pub struct Operator {
    pub(super) env: Vec<(String, String)>,
    pub(super) binds: Vec<Bind>,
    policy: Arc<Policy>,
}

impl fmt::Debug for Operator {
    /// Names only: an index's URL may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.env.iter().map(|(name, _)| name)).finish()
    }
}

impl Operator {
    /// Reads this process's environment and pip's configuration files.
    /// `mirror` is the setting `pip_mirror`, `hosts` the setting `installer.hosts`.
    pub fn from_host(mirror: Option<&str>, hosts: &[Place]) -> Self {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = PathBuf::from(var("HOME").unwrap_or_default());
        // The last one counts, as in pip.
        let files =
            [PathBuf::from("/etc/pip.conf"), home.join(".pip/pip.conf"), home.join(".config/pip/pip.conf")];
        let named = var("PIP_CONFIG_FILE").map(PathBuf::from);
        let texts: Vec<_> =
            files.into_iter().chain(named).filter_map(|path| std::fs::read_to_string(path).ok()).collect();
        let (operator, bad) = Self::new(mirror, hosts, var, &texts.concat(), Path::exists);
        for bad in bad {
            tracing::warn!("{bad}");
        }
        operator
    }

    /// The variables of an installer's sandbox. A value may hold a password.
    pub fn env(&self) -> &[(String, String)] {
        &self.env
    }

    /// The certificates of an installer's sandbox.
    pub fn binds(&self) -> &[Bind] {
        &self.binds
    }

    /// Returns the policy of an installer's outlet: the indexes, `installer.hosts`, port 443 of public
    /// addresses; all of it through the operator's own proxies.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy)
    }

    /// Takes the passwords of the operator's indexes out of a text.
    pub(super) fn redact(&self, text: &str) -> String {
        let secrets = self.env.iter().flat_map(|(_, value)| value.split_whitespace().flat_map(secrets));
        secrets.fold(text.to_owned(), |text, secret| text.replace(&secret, "****"))
    }

    fn new(
        mirror: Option<&str>,
        hosts: &[Place],
        var: impl Fn(&str) -> Option<String>,
        pip_conf: &str,
        exists: impl Fn(&Path) -> bool,
    ) -> (Self, Vec<BadProxy>) {
        let any = |names: &[&str]| names.iter().find_map(|name| var(name));
        let conf = |key: &str| pip_setting(pip_conf, key);
        let mut operator = Self::default();
        let mut set = |name: &str, value: Option<String>| {
            operator.env.extend(value.map(|value| (name.to_owned(), value)));
        };
        let index = mirror.map(str::to_owned);
        let index = index.or_else(|| any(&["UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"]));
        set("UV_DEFAULT_INDEX", index.or_else(|| conf("index-url")));
        set("UV_INDEX", var("UV_INDEX"));
        let extra = any(&["UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"]);
        set("UV_EXTRA_INDEX_URL", extra.or_else(|| conf("extra-index-url")));
        let insecure = any(&["UV_INSECURE_HOST", "PIP_TRUSTED_HOST"]);
        set("UV_INSECURE_HOST", insecure.or_else(|| conf("trusted-host")));
        let timeout = any(&["UV_HTTP_TIMEOUT", "PIP_DEFAULT_TIMEOUT", "PIP_TIMEOUT"]);
        set("UV_HTTP_TIMEOUT", timeout.or_else(|| conf("timeout")));
        let certificates = any(&["SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE"]).or_else(|| conf("cert"));
        if let Some(file) = certificates.map(PathBuf::from).filter(|file| exists(file)) {
            set("SSL_CERT_FILE", Some(CERTIFICATES.to_owned()));
            operator.binds.push(Bind { source: file, target: CERTIFICATES.to_owned(), writable: false });
        }
        let (proxies, bad) = Proxies::read(|name| any(&[name, &name.to_lowercase()]));
        operator.policy = Arc::new(policy(&operator.env, hosts, proxies));
        (operator, bad)
    }
}

/// Returns the passwords of one URL, as it is written and as it is meant. A user's
/// name without one is a token, and a secret too.
fn secrets(url: &str) -> Vec<String> {
    let credentials = url.split_once("://").and_then(|(_, rest)| rest.split('/').next()?.rsplit_once('@'));
    let Some((credentials, _)) = credentials else { return Vec::new() };
    let secret = credentials.split_once(':').map_or(credentials, |(_, password)| password);
    let meant = super::lock::percent_decoded(secret);
    [Some(secret.to_owned()), meant].into_iter().flatten().filter(|secret| !secret.is_empty()).collect()
}

/// The places of the indexes in `env`, and the default one where none is.
fn policy(env: &[(String, String)], hosts: &[Place], proxies: Proxies) -> Policy {
    let value = |wanted: &str| env.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    let places = |texts: &str| -> Vec<Place> {
        // An index of uv's may have a name: NAME=URL.
        let urls = texts.split_whitespace().map(|text| match text.split_once('=') {
            Some((name, url)) if !name.contains("://") => url,
            _ => text,
        });
        urls.filter_map(|url| Place::of_url(url).ok()).collect()
    };
    let variables = ["UV_DEFAULT_INDEX", "UV_INDEX", "UV_EXTRA_INDEX_URL"];
    let mut named: Vec<_> = variables.iter().filter_map(|name| value(name)).flat_map(places).collect();
    named.extend_from_slice(hosts);
    // A public index needs no name: port 443 of public addresses is open.
    Policy { named, proxies }
}

/// A key of `[global]` or `[install]` in pip's configuration; the last counts.
fn pip_setting(text: &str, key: &str) -> Option<String> {
    let mut section = "";
    let mut found: Option<String> = None;
    let mut ours = false;
    for line in text.lines().filter(|line| !line.trim_start().starts_with(['#', ';'])) {
        if let Some(name) = line.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            (section, ours) = (name, false);
        } else if line.starts_with(char::is_whitespace) {
            // A value that goes on.
            if let Some(value) = found.as_mut().filter(|_| ours) {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once('=') {
            ours = matches!(section, "global" | "install") && name.trim().replace('_', "-") == key;
            if ours {
                found = Some(value.trim().to_owned());
            }
        }
    }
    found.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operator(mirror: Option<&str>, vars: &[(&str, &str)], conf: &str) -> Vec<(String, String)> {
        let var =
            |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let mut env = Operator::new(mirror, &[], var, conf, |_| true).0.env;
        env.sort();
        env
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn the_setting_goes_before_the_environment_and_that_before_pips_file() {
        let conf = "[global]\nindex-url = http://conf\n";
        let vars = [("PIP_INDEX_URL", "http://pip"), ("UV_DEFAULT_INDEX", "http://uv")];
        assert_eq!(operator(Some("http://set"), &vars, conf), [pair("UV_DEFAULT_INDEX", "http://set")]);
        assert_eq!(operator(None, &vars, conf), [pair("UV_DEFAULT_INDEX", "http://uv")]);
        assert_eq!(operator(None, &vars[..1], conf), [pair("UV_DEFAULT_INDEX", "http://pip")]);
        assert_eq!(operator(None, &[], conf), [pair("UV_DEFAULT_INDEX", "http://conf")]);
    }

    #[test]
    fn a_password_is_taken_out_in_both_its_spellings() {
        let var = |name: &str| (name == "UV_INDEX").then(|| "own=http://u:s%40fe@index:3128".to_owned());
        let operator = Operator::new(Some("https://token@index/simple"), &[], var, "", |_| true).0;
        let text = operator.redact("https://token@index/simple u:s%40fe s@fe plain");
        assert_eq!(text, "https://****@index/simple u:**** **** plain");
    }

    #[test]
    fn pips_file_is_translated_and_nothing_else_of_the_environment_passes() {
        let conf = "[list]\nindex-url = no\n[global]\n# x\nextra-index-url =\n    http://a\n    http://b\ncert = /ca\n\
                    [install]\ntrusted_host = h\n";
        let env =
            operator(None, &[("https_proxy", "http://p"), ("AWS_SECRET", "s"), ("HOME", "/root")], conf);
        let expected = [
            pair("SSL_CERT_FILE", CERTIFICATES),
            pair("UV_EXTRA_INDEX_URL", "http://a http://b"),
            pair("UV_INSECURE_HOST", "h"),
        ];
        assert_eq!(env, expected);
    }

    fn policy(vars: &[(&str, &str)], hosts: &[Place]) -> Policy {
        let var =
            |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Policy::clone(&Operator::new(None, hosts, var, "", |_| true).0.policy())
    }

    fn texts(places: &[Place]) -> Vec<String> {
        places.iter().map(Place::to_string).collect()
    }

    #[test]
    fn an_outlet_leads_to_each_index_that_is_configured() {
        let public = policy(&[], &[]);
        assert_eq!(texts(&public.named), Vec::<String>::new());

        let vars = [
            ("PIP_INDEX_URL", "https://user:secret@index.corp:8443/simple"),
            ("UV_INDEX", "torch=https://torch.example/whl http://10.0.0.7/simple?a=b"),
            ("PIP_EXTRA_INDEX_URL", "https://more.example/simple"),
        ];
        let own = policy(&vars, &["files.corp".parse().unwrap(), "127.0.0.1:9000".parse().unwrap()]);
        let named = ["index.corp:8443", "torch.example:443", "10.0.0.7:80", "more.example:443"];
        assert_eq!(texts(&own.named), [&named[..], &["files.corp:443", "127.0.0.1:9000"]].concat());
        assert!(!format!("{own:?}").contains("secret"));
    }

    #[test]
    fn a_proxy_of_the_operators_is_the_outlets_and_not_the_sandboxs() {
        let vars = [("https_proxy", "http://me:secret@p:3128"), ("NO_PROXY", "index.corp")];
        let own = policy(&vars, &[]);
        assert!(own.proxies.of(&"index.example".parse().unwrap(), true).is_some());
        assert!(own.proxies.of(&"index.corp".parse().unwrap(), true).is_none());
        assert_eq!(operator(None, &vars, ""), []);
    }
}
