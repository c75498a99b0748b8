//! Tests of traces, opened in a browser if there is one.

use std::{path::Path, process::Command};

use moi_tests::process::{has_feature, refused, run};
use serde_json::Value;

use super::{real_model, text};

/// The name of the Chromium executable, if there is one.
fn chromium() -> Option<&'static str> {
    let works =
        |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success());
    ["chromium", "chromium-browser", "google-chrome"].iter().find(works).copied()
}

/// The page after its scripts have run, and the messages on its console.
fn rendered(browser: &str, page: &Path) -> (String, String) {
    let profile = tempfile::tempdir().unwrap();
    let out = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--virtual-time-budget=4000",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg("--dump-dom")
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let console =
        text(&out.stderr).lines().filter(|line| line.contains("CONSOLE")).collect::<Vec<_>>().join("\n");
    (text(&out.stdout), console)
}

#[test]
fn a_trace_opens_in_a_browser() {
    let model = real_model();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let base = ["trace", "--model", &model, "--quantize", "file", "--temperature", "0", "--max-tokens", "24"];
    // A prompt that would break a page that does not escape text.
    let prompt = "Say </script><b>hello</b> & \"goodbye\"";
    let written = |name: &str, rules: &str| {
        let path = file(name);
        let out = run(&[&base[..], &["--rules", rules, "--output", &path, prompt]].concat());
        assert!(out.status.success() && out.stdout.is_empty(), "{}", text(&out.stderr));
        std::fs::read_to_string(path).unwrap()
    };
    let data: Value = serde_json::from_str(&written("trace.json", "token,moi:support=20")).unwrap();
    let steps = data["runs"][1]["steps"].as_array().unwrap();
    assert!(steps.iter().all(|step| step["likeliest"].as_array().unwrap().len() == 10));
    let csv = written("trace.csv", "moi");
    assert!(csv.starts_with("rule,step,token,text,logprob,entropy,gate\nmoi,0,"), "{csv}");
    match has_feature("plots") {
        true => {
            let svg = written("trace.svg", "token,moi");
            assert!(svg.contains("</svg>") && svg.contains("entropy") && svg.contains("gate"));
        }
        false => refused(&[&base[..], &["--format", "svg", prompt]].concat(), &["--features plots"]),
    }

    let page = written("trace.html", "token,moi:support=20");
    for link in ["http://", "https://", "src=", "href=", "@import", "url("] {
        // The page contains one address, the namespace of SVG elements.
        let page = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!page.contains(link), "the page has {link}");
    }
    let Some(browser) = chromium() else {
        println!(
            "SKIPPED: there is no Chromium here (Debian: apt-get install chromium), so the page was not opened"
        );
        return;
    };
    // Clicks on a step of the second run that mixes, and checks what the page shows then.
    let step = steps.iter().position(|step| step["gate"].as_f64().unwrap() > 0.1).unwrap();
    let click = format!(
        "<script>addEventListener('load', () => {{\
           document.querySelectorAll('.run')[1].querySelectorAll('.token')[{step}].click();\
           document.body.dataset.clicked = document.querySelector('#detail').textContent;\
           document.querySelector('[data-shade=gate]').click();\
           document.dispatchEvent(new KeyboardEvent('keydown', {{key: 'ArrowLeft'}}));\
           document.body.dataset.walked = document.querySelector('#detail').textContent;\
         }});</script></body>"
    );
    let clicked = file("clicked.html");
    std::fs::write(&clicked, page.replace("</body>", &click)).unwrap();
    let (dom, console) = rendered(browser, Path::new(&clicked));
    assert_eq!(console, "", "the page writes to the console");
    let tokens = dom.matches("class=\"token").count();
    let expected: usize =
        data["runs"].as_array().unwrap().iter().map(|run| run["steps"].as_array().unwrap().len()).sum();
    assert_eq!(tokens, expected);
    assert_eq!(dom.matches("<svg").count(), 2);
    let of = |name: &str| {
        let start = dom.find(&format!("data-{name}=\"")).unwrap_or_else(|| panic!("no {name} in {dom}"));
        dom[start..].split('"').nth(1).unwrap().to_owned()
    };
    let shown = of("clicked");
    let weight = steps[step]["top"][0]["weight"].as_f64().unwrap() * 100.0;
    for part in
        [&format!("step {step} of"), "Fed next: largest weights", "Distribution", &format!("{weight:.1}%")]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(of("walked").contains(&format!("step {} of", step.saturating_sub(1))), "{}", of("walked"));
    assert!(
        dom.contains("&lt;/script&gt;") || dom.contains("Say &lt;/script"),
        "the prompt is not shown as text"
    );
}

/// The page of a comparison of devices draws a bar for each row and measurement, and writes nothing to the console.
#[test]
fn a_comparison_opens_in_a_browser() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/tiny/llama");
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("page.html");
    let lists =
        ["--prompt", "8", "--gen", "4", "--rules", "token", "--repetitions", "1", "--compare-devices"];
    let args = ["bench", "--model", model, "--format", "jsonl", "--page", page.to_str().unwrap()];
    let out = run(&[&args[..], &lists].concat());
    assert!(out.status.success(), "{}", text(&out.stderr));
    let rows = text(&out.stdout).lines().count();
    assert!(rows > 4, "{rows} rows");
    let Some(browser) = chromium() else {
        println!("SKIPPED: there is no Chromium here, so the page was not opened");
        return;
    };
    let (dom, console) = rendered(browser, &page);
    assert_eq!(console, "", "the page writes to the console");
    assert!(dom.matches("<svg").count() >= 3, "{dom}");
    assert!(dom.matches("<rect").count() >= rows, "{dom}");
}
