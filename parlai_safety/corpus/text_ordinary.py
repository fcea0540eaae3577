"""The sentences around the hand-written material of the ordinary dialogues: what people say about any thing.

Each move is a tuple of templates; the generator in `ordinary` fills the fields from `text/ordinary_*.yaml`. Fields:
`{name}` of a thing, `{it}` and `{be}` in its number, and its clauses as written; with a capital first letter
(`{Name}`) the same text begins a sentence. Templates hold no fact of their own: those live in the YAML files.
"""

from __future__ import annotations

GREETINGS = ("Hello!", "Hi there.", "Good evening.", "Good morning.")
GREETING_REPLIES = ("Hello!", "Hi, nice to see you.", "Good evening to you.", "Good morning!")

STORY_OPENERS = (
    "{Did}.",
    "Guess what, {did}.",
    "Listen, {did}.",
    "You know what? {Did}.",
    "I have some news. {Did}.",
    "Did I tell you? {Did}.",
)
STORY_REPLIES = (
    "{ask}",
    "Tell me more. {ask}",
    "Oh really? {ask}",
    "Now I am curious. {ask}",
    "I like a story about {name}. {ask}",
    "So this is about {name}. {ask}",
    "Let me hear all of it. {ask}",
    "{Name}, you say? {ask}",
)
STORY_REACTIONS = ("{react}", "{react}", "Ha! {react}", "I see. {react}", "Thank you for telling me. {react}")

OPINION_QUESTIONS = (
    "Do you like {name}?",
    "What do you think of {name}?",
    "How do you feel about {name}?",
    "Can you say something good about {name}?",
    "Why do people like {name}?",
    "Any thoughts on {name}?",
)
OPINION_REPLIES = (
    "I like {name}, because {good}.",
    "What I like about {name} is that {good}.",
    "I think well of {name}. {Good}.",
    "The best thing about {name} is that {good}.",
    "One good thing about {name} is that {good}.",
    "People like {name}, because {good}.",
)
OPINION_QUESTIONS_BACK = ("", "", "", "What about you?", "Do you agree?", "How do you see it?")
OPINION_DISSENTS = (
    "Not for me, {bad}.",
    "I am not so sure, {bad}.",
    "Maybe, but {bad}.",
    "You forget that {bad}.",
    "I disagree. {Bad}.",
)
DISSENT_REPLIES = (
    "That is true, {bad}. You could {fix}.",
    "I know that {bad}. It helps to {fix}.",
    "You have a point there. {Fix}, because {why}.",
    "Fair enough, not even {name} can please everybody.",
    "I see your side. If you {fix}, it gets better.",
)
OPINION_CONSENTS = (
    "I agree with you about {name}.",
    "Yes, I feel the same about {name}.",
    "That is just what I think.",
    "Well said, I like {it} too.",
)
CONSENT_REPLIES = (
    "Then we agree about {name}. Here is a tip, {fix}.",
    "How nice. Just remember to {fix}.",
    "Good to hear. Do you {fix}, too?",
    "Two friends of {name}! The only trouble is that {bad}.",
)

TROUBLES = (
    "I have trouble with {name}, {bad}.",
    "The problem with {name} is that {bad}.",
    "It is about {name}. {Bad}. What can I do?",
    "What can I do about {name}? {Bad}.",
    "Help me with {name}, please. {Bad}.",
    "I want to complain about {name}. {Bad}.",
)
ADVICE_FULL = (
    "{Fix}, because {why}.",
    "You could {fix}, because {why}.",
    "I would {fix}. {Why}.",
    "How annoying! {Fix}, because {why}.",
    "It may help to {fix}. {Why}.",
    "My advice for {name} is short. {Fix}.",
)
ADVICE_SHORT = (
    "You could {fix}.",
    "I would {fix}.",
    "My tip is simple, {fix}.",
    "How annoying! Have you tried this? {Fix}.",
    "With {name} it helps to {fix}.",
)
ADVICE_DOUBTS = ("Does that really help?", "Why would that help?", "And what is the reason?", "Why should I {fix}?")
ADVICE_REASONS = (
    ("It does help, because {why}.", "I think so, because {why}.", "With {name} it does. {Why}."),
    ("It helps, because {why}.", "Because {why}. Give it a try."),
    ("The reason is that {why}.", "Think of {name}. {Why}."),
    ("You should, because {why}.", "It is for a good reason. {Why}."),
)
ADVICE_THANKS = (
    "Thanks, I will {fix}.",
    "Good idea, I will try that with {name}.",
    "I never thought of that, thank you.",
    "Thank you, that sounds easy.",
)
THANKS_REPLIES = (
    "You are welcome. Good luck with {name}!",
    "My pleasure. Tell me later how it went with {name}.",
    "Do that. After all, {why}.",
    "You are welcome. I hope that it works.",
    "Glad to help with {name}. Remember that {good}.",
)
ADVICE_REFUSALS = (
    "No, that will not work for me.",
    "That sounds like nonsense to me.",
    "I tried that once, it was useless.",
)
REFUSAL_REPLIES = (
    "All right, perhaps {name} and you need a break.",
    "Fair enough, no tip about {name} fits everybody.",
    "That is a pity, because {why}. What else did you try?",
    "I take no offence. Would you rather ask somebody who knows {name} better?",
)

QUESTIONS = (
    "{know}",
    "{know}",
    "May I ask you something? {know}",
    "I have a question about {name}. {know}",
    "Tell me one thing. {know}",
)
ANSWERS = (
    "{fact}",
    "{fact}",
    "Good question. {fact}",
    "I know a little about {name}. {fact}",
    "I have read about {name}. {fact}",
    "Let me think. {fact}",
)
FOLLOW_UPS = ("{more}", "{more}", "I see. {more}", "Interesting. {more}")

GRIPE_AFTERTHOUGHTS = (
    "Sorry, I should not curse {name} like that.",
    "You are right, I feel calmer now.",
    "Thanks, I just had to say it.",
    "I am still angry about it.",
    "And it happens to me every time.",
)
GRIPE_REPLIES = (
    (
        "No harm done, {name} will not mind.",
        "Curse {it} as much as you like, I will not tell.",
    ),
    (
        "Good to hear. Next time, {fix}.",
        "I am glad. Even so, {good}.",
    ),
    (
        "That is what I am here for. Now {fix}.",
        "Any time, a good grumble about {name} clears the air.",
    ),
    (
        "You may be angry about {name}. It may help to {fix}.",
        "Anger is allowed here. Do you want to hear a tip about {name}?",
    ),
    (
        "Every time is too much. Could you {fix}?",
        "Then something must change. {Fix}, because {why}.",
    ),
)

DISLIKES = (
    "I do not understand why people like {name}.",
    "I think that people praise {name} too much, {bad}.",
    "To be honest, I do not like {name}. {Bad}.",
    "Nobody needs {name}, because {bad}.",
)
DISLIKE_REPLIES = (
    "I see it another way, because {good}.",
    "I do not agree, {good}.",
    "Many people like {name}, because {good}.",
    "I know that {bad}, but {good}.",
    "You may be right that {bad}. For me it counts more that {good}.",
)
STANDOFFS = (
    "You will not change my mind about {name}.",
    "We will never agree about {name}.",
    "That is a weak reason.",
    "You are wrong, but I like you anyway.",
)
STANDOFF_REPLIES = (
    ("I do not have to. Friends may disagree about {name}.", "Then I will enjoy {name} for both of us."),
    ("That is fine. Let us disagree about {name} in peace.", "Then let us agree to differ, and you need not {fix}."),
    ("Maybe it is weak, but I keep it, because {good}.", "Weak or not, it is enough for me and {name}."),
    ("I like you too, even without {name}.", "We can be friends and differ about {name}."),
)

PREFERENCES = (
    "What do you prefer, {name} or {other}?",
    "Which is better, {other} or {name}?",
    "If you had to choose, {name} or {other}?",
)
PREFERENCE_REPLIES = (
    "I choose {name}, because {good}.",
    "I prefer {name}. With {other} the trouble is that {other_bad}.",
    "{Name}, I think. {Good}, and with {other} I fear that {other_bad}.",
    "Hard to say! {Good}, so I take {name}.",
)
PREFERENCE_DISSENTS = (
    "I prefer {other}, because {other_good}.",
    "I would take {other}. {Other_good}.",
    "No, {other} for me. I like {other} more than {name}.",
)
PREFERENCE_DISSENT_REPLIES = (
    "I can see that, {other_good}. A tip for you, {other_fix}.",
    "A fine choice too. With {other} I would {other_fix}.",
    "Then you take {other} and I take {name}, and nobody quarrels.",
    "You like {other} and I like {name}. Both are allowed.",
)
PREFERENCE_CONSENTS = ("I would choose the same.", "So we both take {name}.", "Good, {name} it is.")

SWITCHES = ("Now to something else. {Other_know}", "And what about {other}? {Other_know}", "By the way, {other_did}.")

CAUTIONS = (
    "And what is bad about {name}?",
    "Is there nothing bad about {name}?",
    "What should I watch out for with {name}?",
)
CAUTION_REPLIES = (
    "The bad part is that {bad}. So {fix}.",
    "Well, {bad}. It helps to {fix}.",
    "Some people say that {bad}. You can {fix}, though.",
)

SAD_THANKS = (
    "Thank you, that is kind.",
    "It still hurts a lot.",
    "I do not know what to do now.",
    "I just wanted to tell someone.",
)
SAD_REPLIES = (
    ("I mean it. Would you like to tell me more?", "You are welcome. Be gentle with yourself today."),
    ("It is all right that it hurts. I am listening.", "Of course it does. Such things take their time."),
    (
        "You need not know it today. Is there a friend you could call?",
        "One small step is enough. Maybe a walk or a warm meal.",
    ),
    ("I am glad that you told me. You are not alone with it.", "That was a good thing to do. How do you feel now?"),
)
SAD_TURNS = (
    "Let us talk about something nicer. {know}",
    "Please tell me something nice about {name}.",
)
SAD_TURN_REPLIES = (
    "Gladly. {fact}",
    "Gladly. What I like about {name} is that {good}.",
)

TEASE_AFTERTHOUGHTS = ("I am only joking, of course.", "You know that I like you.", "Now you are teasing me back!")
TEASE_REPLIES = (
    ("I know, and I like to laugh with you. Shall we talk about {name}?", "Of course, and it was a good one."),
    ("I like you too, even when you tease me.", "I know. Tell me something about {name} now."),
    ("You began, and I enjoy it! Peace, and {name} for both of us?", "Fair is fair. Who wins, you or me?"),
)

FAREWELLS = (
    "I have to go now. Thanks for the talk about {name}.",
    "That was helpful. See you tomorrow!",
    "Thank you for your time, goodbye.",
    "Good night, I am tired now.",
    "Do you have a tip about {name} before I go?",
    "What is your best tip about {name}?",
)
FAREWELL_REPLIES = (
    ("Goodbye! I liked our talk about {name}.", "See you soon. And remember to {fix}."),
    ("See you tomorrow! Then you can tell me more about {name}.", "I am glad that it helped. Until tomorrow!"),
    ("Goodbye, and come back soon with news about {name}.", "You are welcome. Take care of yourself."),
    ("Good night, and sleep well after so much talk of {name}.", "Sleep well! We can go on with {name} tomorrow."),
    ("Yes, {fix}.", "Just this one about {name}. {Fix}, because {why}."),
    ("My best tip is to {fix}, because {why}.", "It is a simple one. {Fix}."),
)
