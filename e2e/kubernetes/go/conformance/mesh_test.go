// Package conformance runs Gateway API's own conformance suite against a mesh that is installed in the cluster of
// KUBECONFIG: everything that it has for meshes, with the suite's own timeouts.
//
// A test that passes proves little by itself: some pass without any mesh. So a test counts here only if it ran, passed,
// and the proxies of the pods counted requests meanwhile, some for each of the routes that the test brought, and none that
// reached a Service's workload in plain text.
package conformance

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientset "k8s.io/client-go/kubernetes"
	"sigs.k8s.io/gateway-api/conformance"
	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"
	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
	"sigs.k8s.io/yaml"
)

var (
	version = flag.String("mesh-version", "", "the version of the mesh, for the report")
	table   = flag.String("results-table", "", "the file to write the result of each test to, as Markdown")
)

// The features that mesh tests use beside those of the profiles. A test that names one of them belongs to no profile.
var outsideProfiles = []features.FeatureName{
	features.SupportHTTPRouteParentRefPort,
	features.SupportHTTPRouteResponseHeaderModification,
	features.SupportHTTPRoute303RedirectStatusCode,
	features.SupportHTTPRoute307RedirectStatusCode,
	features.SupportHTTPRoute308RedirectStatusCode,
}

func TestMesh(t *testing.T) {
	options := conformance.DefaultOptions(t)
	options.ConformanceProfiles = []suite.ConformanceProfileName{
		suite.MeshHTTPConformanceProfileName,
		suite.MeshGRPCConformanceProfileName,
	}
	options.SupportedFeatures = append(
		features.SetsToNamesSet(features.MeshCoreFeatures, features.MeshExtendedFeatures).UnsortedList(),
		outsideProfiles...,
	)
	options.NamespaceLabels = map[string]string{"mesh-injection": "enabled"}
	options.Implementation = confv1.Implementation{
		Organization: "meshctl",
		Project:      "mesh",
		URL:          "https://meshctl.dev",
		Version:      *version,
		Contact:      []string{"https://meshctl.dev/docs"},
	}
	seen := &observer{clients: options.Clientset, counted: map[traffic]float64{}}
	options.Hook = seen.after
	t.Run("suite", func(t *testing.T) { conformance.RunConformanceWithOptions(t, options) })
	seen.judge(t)
}

// observer keeps what became of each mesh test.
type observer struct {
	clients clientset.Interface
	// What the callers' proxies have counted up to the last test.
	counted map[traffic]float64
	results []result
}

// traffic is what is told apart of requests.
type traffic struct {
	// As the mesh names it: kind/namespace/name/rule.
	route string
	// It reached a workload of a Service, and was not encrypted on the way.
	plain bool
}

type result struct {
	test     suite.ConformanceTest
	requests float64
	// Why it doesn't count as passed; empty if it does.
	problem string
}

// after is called by the suite when a test has ended.
func (o *observer) after(t *testing.T, test suite.ConformanceTest, _ *suite.ConformanceTestSuite) {
	if !slices.Contains(test.Features, features.SupportMesh) {
		return
	}
	result := result{test: test}
	defer func() { o.results = append(o.results, result) }()
	counted, err := count(o.clients)
	if err != nil {
		result.problem = fmt.Sprintf("no counters: %v", err)
		return
	}
	missing, err := routes(test)
	if err != nil {
		result.problem = fmt.Sprintf("no routes: %v", err)
		return
	}
	var plain float64
	for of, requests := range counted {
		more := requests - o.counted[of]
		result.requests += more
		if of.plain {
			plain += more
		}
		if more > 0 {
			missing = slices.DeleteFunc(missing, func(name string) bool { return strings.HasPrefix(of.route, name+"/") })
		}
	}
	o.counted = counted
	switch {
	case t.Failed():
		result.problem = "failed"
	case t.Skipped():
		result.problem = "skipped"
	case result.requests == 0:
		result.problem = "no request went through a proxy"
	case len(missing) > 0:
		result.problem = "no request was decided by " + strings.Join(missing, ", ")
	case plain > 0:
		result.problem = fmt.Sprintf("%.0f requests were not encrypted", plain)
	}
}

// judge fails the test unless every mesh test of the suite counts as passed.
func (o *observer) judge(t *testing.T) {
	out := &strings.Builder{}
	fmt.Fprintln(out, "# Mesh tests that passed\n\n| Test | Features beside Mesh | Counted by |\n|---|---|---|")
	ran := map[string]bool{}
	for _, result := range o.results {
		ran[result.test.ShortName] = true
		if result.problem != "" {
			t.Errorf("%s: %s", result.test.ShortName, result.problem)
			continue
		}
		t.Logf("%s: passed; %.0f requests through proxies", result.test.ShortName, result.requests)
		others, counted := describe(result.test)
		fmt.Fprintf(out, "| %s | %s | %s |\n", result.test.ShortName, others, counted)
	}
	for _, test := range tests.ConformanceTests {
		if slices.Contains(test.Features, features.SupportMesh) && !ran[test.ShortName] {
			t.Errorf("%s: did not run", test.ShortName)
		}
	}
	if *table != "" && !t.Failed() {
		if err := os.WriteFile(*table, []byte(out.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// describe names the features of the test beside Mesh, and the profile that counts it.
func describe(test suite.ConformanceTest) (others, counted string) {
	var names []string
	counted = "MESH-HTTP"
	for _, feature := range test.Features {
		if feature == features.SupportMesh {
			continue
		}
		names = append(names, string(feature))
		if feature == features.SupportGRPCRoute {
			counted = "MESH-GRPC"
		}
	}
	for _, feature := range test.Features {
		if slices.Contains(outsideProfiles, feature) {
			counted = "no profile"
		}
	}
	if len(names) == 0 {
		return "-", "both profiles"
	}
	return strings.Join(names, ", "), counted
}

// routes returns what the test's manifests have, each as the proxies name it, without the rule.
func routes(test suite.ConformanceTest) ([]string, error) {
	var names []string
	for _, path := range test.Manifests {
		text, err := conformance.Manifests.ReadFile(path)
		if err != nil {
			return nil, err
		}
		for part := range strings.SplitSeq(string(text), "\n---") {
			var object metav1.PartialObjectMetadata
			if err := yaml.Unmarshal([]byte(part), &object); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			names = append(names, fmt.Sprintf("%s/%s/%s", object.Kind, object.Namespace, object.Name))
		}
	}
	return names, nil
}

// count sums what the proxies of the suite's pods have counted for their own applications. A pod without a proxy counts
// nothing.
func count(clients clientset.Interface) (map[traffic]float64, error) {
	sums := map[traffic]float64{}
	for _, namespace := range []string{suite.MeshNamespace, suite.MeshConsumerNamespace} {
		pods, err := clients.CoreV1().Pods(namespace).List(context.Background(), metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		for _, pod := range pods.Items {
			if !hasProxy(pod) {
				continue
			}
			metrics, err := scrape(clients, pod)
			if err != nil {
				return nil, fmt.Errorf("metrics of %s/%s: %w", namespace, pod.Name, err)
			}
			for _, metric := range metrics["mesh_requests_total"].GetMetric() {
				labels := map[string]string{}
				for _, label := range metric.GetLabel() {
					labels[label.GetName()] = label.GetValue()
				}
				if labels["direction"] != "outbound" {
					continue
				}
				arrived := labels["destination_service"] != "passthrough" && labels["destination_workload"] != "unknown"
				plain := arrived && labels["security"] != "mutual_tls"
				sums[traffic{labels["route"], plain}] += metric.GetCounter().GetValue()
			}
		}
	}
	return sums, nil
}

// scrape goes through the API server, so that it works wherever the pods are.
func scrape(clients clientset.Interface, pod corev1.Pod) (map[string]*dto.MetricFamily, error) {
	proxy := clients.CoreV1().Pods(pod.Namespace).ProxyGet("http", pod.Name, "15090", "metrics", nil)
	body, err := proxy.DoRaw(context.Background())
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(bytes.NewReader(body))
}

func hasProxy(pod corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == "mesh-proxy" })
}
