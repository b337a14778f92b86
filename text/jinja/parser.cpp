#include "text/jinja/parser.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "text/jinja/lexer.h"
#include "text/jinja/runtime.h"

namespace dsv3::jinja {

using lite::corrupt;
using lite::unsupported;

namespace {

using Kind = Token::Kind;
using Node = Expression::Kind;
using Body = std::vector<Statement>;

constexpr int kMaxNesting = 100;          // of statements, and of brackets and the like
constexpr int kMaxExpressionDepth = 300;  // of one expression, long chains of operators included

// Statements of the language that chat templates have no use for, or that would reach outside of the template.
constexpr std::string_view kUnsupported[] = {"autoescape", "block", "call",   "do",      "extends",
                                             "filter",     "from",  "import", "include", "trans"};

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Result<Body> run() {
    LITE_ASSIGN(Body body, this->body({}));
    LITE_TRY(check_calls());
    return body;
  }

 private:
  // ---- tokens

  const Token& now() const { return tokens_[at_]; }
  const Token& next() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  void skip() {
    if (at_ + 1 < tokens_.size()) ++at_;
  }
  bool is_operator(std::string_view text) const { return now().is(Kind::Operator, text); }
  bool is_name(std::string_view text) const { return now().is(Kind::Name, text); }
  bool take(Kind kind, std::string_view text) {
    if (!now().is(kind, text)) return false;
    skip();
    return true;
  }
  bool take_operator(std::string_view text) { return take(Kind::Operator, text); }
  bool take_name(std::string_view text) { return take(Kind::Name, text); }

  std::string shown() const {
    switch (now().kind) {
      case Kind::Text: return "text";
      case Kind::OutputBegin: return "\"{{\"";
      case Kind::OutputEnd: return "\"}}\"";
      case Kind::TagBegin: return "\"{%\"";
      case Kind::TagEnd: return "\"%}\"";
      case Kind::End: return "the end of the template";
      case Kind::String: return "a string";
      default: return "\"" + now().text + "\"";
    }
  }
  Status expected(std::string_view what) const {
    return corrupt("line ", now().line, ": got ", shown(), ", expected ", what);
  }
  Status expect_operator(std::string_view text) {
    return take_operator(text) ? Status() : expected("\"" + std::string(text) + "\"");
  }
  Status expect(Kind kind, std::string_view what) {
    if (now().kind != kind) return expected(what);
    skip();
    return {};
  }
  Result<std::string> take_identifier(std::string_view what) {
    if (now().kind != Kind::Name) return expected(what);
    std::string name = now().text;
    skip();
    return name;
  }

  // Counts the nesting of what is being parsed, which is also our own recursion.
  struct Nest {
    explicit Nest(Parser* p) : parser(p) { ++parser->nesting_; }
    ~Nest() { --parser->nesting_; }
    Nest(const Nest&) = delete;
    Nest& operator=(const Nest&) = delete;
    Status check() const {
      if (parser->nesting_ <= kMaxNesting) return {};
      return unsupported("line ", parser->now().line, ": nested deeper than ", kMaxNesting);
    }
    Parser* parser;
  };

  // ---- statements

  // Statements up to a tag whose name is one of `ends`, which is left at its name; without any up to the end.
  Result<Body> body(std::initializer_list<std::string_view> ends) {
    const Nest nest(this);
    LITE_TRY(nest.check());
    Body out;
    for (;;) {
      const int line = now().line;
      if (now().kind == Kind::End) {
        if (ends.size() == 0) return out;
        return expected("{% " + std::string(*(ends.end() - 1)) + " %}");
      }
      if (now().kind == Kind::Text) {
        Statement s = make(Statement::Kind::Text, line);
        s.text = Text::trusted(now().text);
        out.push_back(std::move(s));
        skip();
      } else if (now().kind == Kind::OutputBegin) {
        skip();
        Statement s = make(Statement::Kind::Output, line);
        LITE_ASSIGN(s.expression, tuple(Tuples::Bare));
        LITE_TRY(expect(Kind::OutputEnd, "\"}}\""));
        out.push_back(std::move(s));
      } else {
        LITE_TRY(expect(Kind::TagBegin, "a tag"));
        if (std::find(ends.begin(), ends.end(), now().text) != ends.end() && now().kind == Kind::Name)
          return out;
        LITE_ASSIGN(Statement s, statement());
        out.push_back(std::move(s));
      }
    }
  }

  static Statement make(Statement::Kind kind, int line) {
    Statement s;
    s.kind = kind;
    s.line = line;
    return s;
  }

  Status end_of_tag() { return expect(Kind::TagEnd, "\"%}\""); }

  // The end tag that body() stopped at.
  Status closing(std::string_view name) {
    if (!take_name(name)) return expected("{% " + std::string(name) + " %}");
    return end_of_tag();
  }

  Result<Statement> statement() {
    const int line = now().line;
    LITE_ASSIGN(const std::string name, take_identifier("the name of a tag"));
    if (name == "if") return if_statement(line);
    if (name == "for") return for_statement(line);
    if (name == "set") return set_statement(line);
    if (name == "macro") return macro_statement(line);
    if (name == "with") return with_statement(line);
    if (name == "generation") {  // marks what an assistant wrote, for training; renders as it is
      Statement s = make(Statement::Kind::Block, line);
      LITE_TRY(end_of_tag());
      LITE_ASSIGN(s.body, body({"endgeneration"}));
      LITE_TRY(closing("endgeneration"));
      return s;
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) return corrupt("line ", line, ": {% ", name, " %} outside of a loop");
      LITE_TRY(end_of_tag());
      return make(name == "break" ? Statement::Kind::Break : Statement::Kind::Continue, line);
    }
    if (std::find(std::begin(kUnsupported), std::end(kUnsupported), name) != std::end(kUnsupported))
      return unsupported("line ", line, ": {% ", name, " %} is not supported");
    return corrupt("line ", line, ": unknown tag {% ", name, " %}");
  }

  Result<Statement> if_statement(int line) {
    Statement s = make(Statement::Kind::If, line);
    bool conditional = true;
    for (;;) {
      Statement::Branch branch;
      if (conditional) {
        LITE_ASSIGN(branch.condition, tuple(Tuples::BareWithoutIf));
      }
      LITE_TRY(end_of_tag());
      LITE_ASSIGN(branch.body, conditional ? body({"elif", "else", "endif"}) : body({"endif"}));
      s.branches.push_back(std::move(branch));
      if (take_name("elif")) continue;
      if (!take_name("else")) break;
      conditional = false;
    }
    LITE_TRY(closing("endif"));
    return s;
  }

  // Names that are assigned to: "a", "a, b" or "(a, b)".
  Status targets(std::vector<std::string>* names) {
    const bool brackets = take_operator("(");
    do {
      if (!names->empty() && (is_name("in") || is_operator("=") || is_operator(")"))) break;
      if (is_operator("(")) return unsupported("line ", now().line, ": nested targets are not supported");
      LITE_ASSIGN(std::string name, take_identifier("a name"));
      if (is_constant(name)) return corrupt("line ", now().line, ": cannot assign to ", name);
      assigned_.insert(name);
      names->push_back(std::move(name));
    } while (take_operator(","));
    return brackets ? expect_operator(")") : Status();
  }

  static bool is_constant(std::string_view name) {
    return name == "true" || name == "false" || name == "none" || name == "True" || name == "False" ||
           name == "None";
  }

  Result<Statement> for_statement(int line) {
    Statement s = make(Statement::Kind::For, line);
    LITE_TRY(targets(&s.targets));
    if (std::find(s.targets.begin(), s.targets.end(), "loop") != s.targets.end())
      return corrupt("line ", line, ": a loop cannot assign to \"loop\"");
    if (!take_name("in")) return expected("\"in\"");
    LITE_ASSIGN(s.expression, tuple(Tuples::BareWithoutIf));
    if (take_name("if")) {
      LITE_ASSIGN(s.condition, expression());
    }
    if (is_name("recursive")) return unsupported("line ", line, ": a recursive loop is not supported");
    LITE_TRY(end_of_tag());
    ++loops_;
    ++scopes_;
    LITE_ASSIGN(s.body, body({"else", "endfor"}));
    --loops_;
    if (take_name("else")) {
      LITE_TRY(end_of_tag());
      LITE_ASSIGN(s.otherwise, body({"endfor"}));
    }
    --scopes_;
    LITE_TRY(closing("endfor"));
    return s;
  }

  Result<Statement> set_statement(int line) {
    Statement s = make(Statement::Kind::Set, line);
    if (now().kind == Kind::Name && next().is(Kind::Operator, ".")) {
      s.targets.push_back(now().text);
      skip();
      skip();
      LITE_ASSIGN(s.attribute, take_identifier("an attribute's name"));
    } else {
      LITE_TRY(targets(&s.targets));
    }
    if (take_operator("=")) {
      LITE_ASSIGN(s.expression, tuple(Tuples::Bare));
      LITE_TRY(end_of_tag());
      return s;
    }
    s.kind = Statement::Kind::SetBlock;
    if (s.targets.size() != 1 || !s.attribute.empty()) return expected("\"=\"");
    // The filters apply to the block's text, which takes the place of an empty constant.
    s.expression = leaf(Node::Constant, line);
    if (is_operator("|")) {
      LITE_ASSIGN(s.expression, filters(std::move(s.expression)));
    }
    LITE_TRY(end_of_tag());
    ++scopes_;
    LITE_ASSIGN(s.body, body({"endset"}));
    --scopes_;
    LITE_TRY(closing("endset"));
    return s;
  }

  Result<Statement> macro_statement(int line) {
    if (scopes_ > 0)
      return unsupported("line ", line, ": a macro inside of a loop, block or macro is not supported");
    Statement s = make(Statement::Kind::Macro, line);
    LITE_ASSIGN(s.name, take_identifier("the macro's name"));
    assigned_.insert(s.name);
    LITE_TRY(expect_operator("("));
    while (!is_operator(")")) {
      if (!s.targets.empty()) LITE_TRY(expect_operator(","));
      LITE_ASSIGN(std::string name, take_identifier("a parameter's name"));
      if (std::find(s.targets.begin(), s.targets.end(), name) != s.targets.end())
        return corrupt("line ", line, ": macro ", s.name, ": two parameters are named ", name);
      assigned_.insert(name);
      s.targets.push_back(std::move(name));
      if (take_operator("=")) {
        LITE_ASSIGN(ExpressionPtr value, expression());
        s.values.push_back(std::move(value));
      } else if (!s.values.empty()) {
        return expected("a default, as for the parameter before");
      }
    }
    skip();
    LITE_TRY(end_of_tag());
    const int loops = std::exchange(loops_, 0);
    ++scopes_;
    LITE_ASSIGN(s.body, body({"endmacro"}));
    --scopes_;
    loops_ = loops;
    LITE_TRY(closing("endmacro"));
    return s;
  }

  Result<Statement> with_statement(int line) {
    Statement s = make(Statement::Kind::With, line);
    while (now().kind != Kind::TagEnd) {
      if (!s.targets.empty()) LITE_TRY(expect_operator(","));
      LITE_ASSIGN(std::string name, take_identifier("a name"));
      assigned_.insert(name);
      s.targets.push_back(std::move(name));
      LITE_TRY(expect_operator("="));
      LITE_ASSIGN(ExpressionPtr value, expression());
      s.values.push_back(std::move(value));
    }
    skip();
    ++scopes_;
    LITE_ASSIGN(s.body, body({"endwith"}));
    --scopes_;
    LITE_TRY(closing("endwith"));
    return s;
  }

  // ---- expressions, the loosest binding first

  static ExpressionPtr leaf(Node kind, int line) {
    auto e = std::make_unique<Expression>();
    e->kind = kind;
    e->line = line;
    return e;
  }
  static ExpressionPtr constant(Value value, int line) {
    ExpressionPtr e = leaf(Node::Constant, line);
    e->value = std::move(value);
    return e;
  }

  // Appends operands (null: left out) and sees to it that the tree stays walkable.
  Status adopt(Expression* e, ExpressionPtr operand) {
    if (operand) e->depth = std::max(e->depth, operand->depth + 1);
    e->args.push_back(std::move(operand));
    if (e->depth <= kMaxExpressionDepth) return {};
    return unsupported("line ", e->line, ": an expression of more than ", kMaxExpressionDepth,
                       " operators in a row");
  }
  Result<ExpressionPtr> unary(Node kind, int line, ExpressionPtr operand) {
    ExpressionPtr e = leaf(kind, line);
    LITE_TRY(adopt(e.get(), std::move(operand)));
    return e;
  }
  Result<ExpressionPtr> binary(Node kind, std::string name, ExpressionPtr a, ExpressionPtr b) {
    ExpressionPtr e = leaf(kind, a->line);
    e->name = std::move(name);
    LITE_TRY(adopt(e.get(), std::move(a)));
    LITE_TRY(adopt(e.get(), std::move(b)));
    return e;
  }

  enum class Tuples { Bare, BareWithoutIf, InBrackets };

  // Expressions with commas between them are a tuple; one without a comma is itself.
  Result<ExpressionPtr> tuple(Tuples where) {
    const int line = now().line;
    const auto ends = [&] {
      return now().kind == Kind::TagEnd || now().kind == Kind::OutputEnd || is_operator(")") ||
             (where == Tuples::BareWithoutIf && is_name("if")) || is_operator("=");
    };
    std::vector<ExpressionPtr> items;
    bool comma = false;
    while (!ends()) {
      LITE_ASSIGN(ExpressionPtr e, where == Tuples::BareWithoutIf ? either() : expression());
      items.push_back(std::move(e));
      if (!take_operator(",")) break;
      comma = true;
    }
    if (items.size() == 1 && !comma) return std::move(items[0]);
    if (items.empty() && where != Tuples::InBrackets) return expected("an expression");
    ExpressionPtr e = leaf(Node::Tuple, line);
    for (ExpressionPtr& i : items) LITE_TRY(adopt(e.get(), std::move(i)));
    return e;
  }

  // a if b else c
  Result<ExpressionPtr> expression() {
    const Nest nest(this);
    LITE_TRY(nest.check());
    LITE_ASSIGN(ExpressionPtr left, either());
    while (take_name("if")) {
      ExpressionPtr e = leaf(Node::Conditional, left->line), otherwise;
      LITE_ASSIGN(ExpressionPtr condition, either());
      if (take_name("else")) {
        LITE_ASSIGN(otherwise, expression());
      }
      LITE_TRY(adopt(e.get(), std::move(left)));
      LITE_TRY(adopt(e.get(), std::move(condition)));
      LITE_TRY(adopt(e.get(), std::move(otherwise)));
      left = std::move(e);
    }
    return left;
  }

  Result<ExpressionPtr> either() {
    LITE_ASSIGN(ExpressionPtr left, both());
    while (take_name("or")) {
      LITE_ASSIGN(ExpressionPtr right, both());
      LITE_ASSIGN(left, binary(Node::Or, "", std::move(left), std::move(right)));
    }
    return left;
  }

  Result<ExpressionPtr> both() {
    LITE_ASSIGN(ExpressionPtr left, negation());
    while (take_name("and")) {
      LITE_ASSIGN(ExpressionPtr right, negation());
      LITE_ASSIGN(left, binary(Node::And, "", std::move(left), std::move(right)));
    }
    return left;
  }

  Result<ExpressionPtr> negation() {
    const int line = now().line;
    if (!take_name("not")) return comparison();
    const Nest nest(this);
    LITE_TRY(nest.check());
    LITE_ASSIGN(ExpressionPtr operand, negation());
    return unary(Node::Not, line, std::move(operand));
  }

  // The comparison operator that is here, taken; "" for none.
  std::string take_comparison() {
    static constexpr std::string_view kOperators[] = {"==", "!=", "<", "<=", ">", ">="};
    for (const std::string_view op : kOperators)
      if (take_operator(op)) return std::string(op);
    if (take_name("in")) return "in";
    if (is_name("not") && next().is(Kind::Name, "in")) {
      skip();
      skip();
      return "not in";
    }
    return "";
  }

  Result<ExpressionPtr> comparison() {
    LITE_ASSIGN(ExpressionPtr left, sum());
    std::string op = take_comparison();
    if (op.empty()) return left;
    ExpressionPtr e = leaf(Node::Compare, left->line);
    LITE_TRY(adopt(e.get(), std::move(left)));
    for (; !op.empty(); op = take_comparison()) {
      e->names.push_back(std::move(op));
      LITE_ASSIGN(ExpressionPtr right, sum());
      LITE_TRY(adopt(e.get(), std::move(right)));
    }
    return e;
  }

  // Operands of the operators `ops`, which bind from the left; `operand` parses what binds tighter.
  template <class Operand>
  Result<ExpressionPtr> chain(std::initializer_list<std::string_view> ops, Operand operand) {
    LITE_ASSIGN(ExpressionPtr left, operand());
    for (;;) {
      const auto op =
          std::find_if(ops.begin(), ops.end(), [&](std::string_view o) { return take_operator(o); });
      if (op == ops.end()) return left;
      LITE_ASSIGN(ExpressionPtr right, operand());
      LITE_ASSIGN(left, binary(Node::Arithmetic, std::string(*op), std::move(left), std::move(right)));
    }
  }

  Result<ExpressionPtr> sum() {
    return chain({"+", "-"}, [this] { return concatenation(); });
  }

  Result<ExpressionPtr> concatenation() {
    LITE_ASSIGN(ExpressionPtr left, product());
    if (!is_operator("~")) return left;
    ExpressionPtr e = leaf(Node::Concat, left->line);
    LITE_TRY(adopt(e.get(), std::move(left)));
    while (take_operator("~")) {
      LITE_ASSIGN(ExpressionPtr right, product());
      LITE_TRY(adopt(e.get(), std::move(right)));
    }
    return e;
  }

  Result<ExpressionPtr> product() {
    return chain({"*", "//", "/", "%"}, [this] { return power(); });
  }

  Result<ExpressionPtr> power() {
    return chain({"**"}, [this] { return signed_value(true); });
  }

  // A filter takes the signed value: -1 | abs is 1.
  Result<ExpressionPtr> signed_value(bool with_filters) {
    const int line = now().line;
    const bool minus = is_operator("-");
    ExpressionPtr e;
    if (minus || is_operator("+")) {
      skip();
      const Nest nest(this);
      LITE_TRY(nest.check());
      LITE_ASSIGN(ExpressionPtr operand, signed_value(false));
      LITE_ASSIGN(e, unary(minus ? Node::Negative : Node::Positive, line, std::move(operand)));
    } else {
      LITE_ASSIGN(e, primary());
    }
    LITE_ASSIGN(e, postfix(std::move(e)));
    return with_filters ? filters(std::move(e)) : std::move(e);
  }

  Result<ExpressionPtr> primary() {
    const Token token = now();
    const int line = token.line;
    switch (token.kind) {
      case Kind::Name: skip(); return name(token.text, line);
      case Kind::String: {
        std::string text;  // strings side by side are one
        for (; now().kind == Kind::String; skip()) text += now().text;
        return constant(Text::trusted(text), line);
      }
      case Kind::Integer: {
        skip();
        int64_t value = 0;
        const auto end = std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
        if (end.ec != std::errc())
          return unsupported("line ", line, ": ", token.text, " does not fit 64 bits");
        return constant(value, line);
      }
      case Kind::Float: {
        skip();
        double value = 0;
        const auto end = std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
        if (end.ec != std::errc()) return unsupported("line ", line, ": ", token.text, " is no double");
        return constant(value, line);
      }
      default: break;
    }
    if (take_operator("(")) {
      LITE_ASSIGN(ExpressionPtr e, tuple(Tuples::InBrackets));
      LITE_TRY(expect_operator(")"));
      return e;
    }
    if (take_operator("[")) return list(line);
    if (take_operator("{")) return dict(line);
    return expected("an expression");
  }

  Result<ExpressionPtr> name(const std::string& name, int line) {
    if (name == "true" || name == "True") return constant(true, line);
    if (name == "false" || name == "False") return constant(false, line);
    if (name == "none" || name == "None") return constant(Value(), line);
    if (name == "varargs" || name == "kwargs" || name == "caller" || name == "self")
      return unsupported("line ", line, ": \"", name, "\" is not supported");
    ExpressionPtr e = leaf(Node::Name, line);
    e->name = name;
    return e;
  }

  Result<ExpressionPtr> list(int line) {
    ExpressionPtr e = leaf(Node::List, line);
    while (!is_operator("]")) {
      if (!e->args.empty()) LITE_TRY(expect_operator(","));
      if (is_operator("]")) break;
      LITE_ASSIGN(ExpressionPtr item, expression());
      LITE_TRY(adopt(e.get(), std::move(item)));
    }
    skip();
    return e;
  }

  Result<ExpressionPtr> dict(int line) {
    ExpressionPtr e = leaf(Node::Dict, line);
    while (!is_operator("}")) {
      if (!e->args.empty()) LITE_TRY(expect_operator(","));
      if (is_operator("}")) break;
      LITE_ASSIGN(ExpressionPtr key, expression());
      LITE_TRY(adopt(e.get(), std::move(key)));
      LITE_TRY(expect_operator(":"));
      LITE_ASSIGN(ExpressionPtr value, expression());
      LITE_TRY(adopt(e.get(), std::move(value)));
    }
    skip();
    return e;
  }

  // .name, [key], [begin:end:step], (arguments)
  Result<ExpressionPtr> postfix(ExpressionPtr e) {
    for (;;) {
      const int line = now().line;
      if (take_operator(".")) {
        const Token member = now();
        if (member.kind == Kind::Integer) {
          LITE_ASSIGN(ExpressionPtr index, primary());
          LITE_ASSIGN(e, binary(Node::Item, "", std::move(e), std::move(index)));
          continue;
        }
        LITE_ASSIGN(std::string name, take_identifier("a member's name"));
        LITE_ASSIGN(e, unary(Node::Attribute, line, std::move(e)));
        e->name = std::move(name);
      } else if (take_operator("[")) {
        LITE_ASSIGN(e, subscript(std::move(e), line));
      } else if (is_operator("(")) {
        LITE_ASSIGN(e, call(std::move(e)));
      } else {
        return e;
      }
    }
  }

  Result<ExpressionPtr> subscript(ExpressionPtr of, int line) {
    ExpressionPtr part[3];
    int n = 0;
    bool slice = false;
    for (; n < 3; ++n) {
      if (!is_operator(":") && !is_operator("]")) {
        LITE_ASSIGN(part[n], expression());
      }
      if (!take_operator(":")) break;
      slice = true;
    }
    LITE_TRY(expect_operator("]"));
    if (!slice && !part[0]) return corrupt("line ", line, ": [] without a key");
    ExpressionPtr e = leaf(slice ? Node::Slice : Node::Item, line);
    LITE_TRY(adopt(e.get(), std::move(of)));
    for (int i = 0; i < (slice ? 3 : 1); ++i) LITE_TRY(adopt(e.get(), std::move(part[i])));
    return e;
  }

  // (a, b, name=c): appended to the operands of `e`.
  Status arguments(Expression* e) {
    LITE_TRY(expect_operator("("));
    bool first = true;
    while (!is_operator(")")) {
      if (!first) LITE_TRY(expect_operator(","));
      if (is_operator(")")) break;
      first = false;
      if (is_operator("*") || is_operator("**"))
        return unsupported("line ", now().line, ": arguments with ", shown(), " are not supported");
      if (now().kind == Kind::Name && next().is(Kind::Operator, "=")) {
        e->names.push_back(now().text);
        skip();
        skip();
      } else if (!e->names.empty()) {
        return corrupt("line ", now().line, ": an argument without a name after one with a name");
      }
      LITE_ASSIGN(ExpressionPtr value, expression());
      LITE_TRY(adopt(e, std::move(value)));
    }
    skip();
    return {};
  }

  Result<ExpressionPtr> call(ExpressionPtr callee) {
    const int line = callee->line;
    if (callee->kind == Node::Attribute && !is_method(callee->name))
      return unsupported("line ", line, ": method \"", callee->name, "\" is not supported");
    if (callee->kind == Node::Name) called_.emplace_back(callee->name, line);
    LITE_ASSIGN(ExpressionPtr e, unary(Node::Call, line, std::move(callee)));
    LITE_TRY(arguments(e.get()));
    return e;
  }

  // | filter, is test, (arguments)
  Result<ExpressionPtr> filters(ExpressionPtr e) {
    for (;;) {
      const int line = now().line;
      if (take_operator("|")) {
        LITE_ASSIGN(const std::string name, take_identifier("a filter's name"));
        if (!is_filter(name)) return unsupported("line ", line, ": filter \"", name, "\" is not supported");
        LITE_ASSIGN(e, unary(Node::Filter, line, std::move(e)));
        e->name = name;
        if (is_operator("(")) LITE_TRY(arguments(e.get()));
      } else if (take_name("is")) {
        LITE_ASSIGN(e, test(std::move(e), line));
      } else if (is_operator("(")) {
        LITE_ASSIGN(e, call(std::move(e)));
      } else {
        return e;
      }
    }
  }

  Result<ExpressionPtr> test(ExpressionPtr of, int line) {
    const bool negated = take_name("not");
    LITE_ASSIGN(const std::string name, take_identifier("a test's name"));
    if (!is_test(name)) return unsupported("line ", line, ": test \"", name, "\" is not supported");
    LITE_ASSIGN(ExpressionPtr e, unary(Node::Test, line, std::move(of)));
    e->name = name;
    const bool value = now().kind == Kind::String || now().kind == Kind::Integer ||
                       now().kind == Kind::Float || is_operator("[") || is_operator("{");
    const bool word = now().kind == Kind::Name && !is_name("else") && !is_name("or") && !is_name("and");
    if (is_operator("(")) {
      LITE_TRY(arguments(e.get()));
    } else if (value || word) {
      if (is_name("is")) return corrupt("line ", line, ": tests in a row, expected \"and\" between them");
      LITE_ASSIGN(ExpressionPtr argument, primary());
      LITE_ASSIGN(argument, postfix(std::move(argument)));
      LITE_TRY(adopt(e.get(), std::move(argument)));
    }
    return negated ? unary(Node::Not, line, std::move(e)) : std::move(e);
  }

  // Functions cannot come from outside: what is called by name is ours or the template's.
  Status check_calls() const {
    for (const auto& [name, line] : called_)
      if (!function_named(name) && !assigned_.count(name))
        return unsupported("line ", line, ": function \"", name, "\" is not supported");
    return {};
  }

  const std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;   // around what is being parsed, within the macro
  int scopes_ = 0;  // of any kind
  std::set<std::string, std::less<>> assigned_;
  std::vector<std::pair<std::string, int>> called_;
};

}  // namespace

Result<std::vector<Statement>> parse(std::string_view source) {
  LITE_ASSIGN(std::vector<Token> tokens, lex(source));
  return Parser(std::move(tokens)).run();
}

}  // namespace dsv3::jinja
