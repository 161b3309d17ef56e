"""Wordings of the instructions for real media: twenty and more for training, others for testing.

A model that has met a task in one wording answers that wording; one that has met it in many answers
what is asked. Scores are taken on wordings that training never saw (tests/data/test_paraphrases.py
holds them apart). `{box}`, `{start}`, `{end}`, `{question}` and `{choices}` are filled in by
`sources/asking.py`; `{box}` is four numbers in brackets, times are in seconds.

Every wording of grounding ends with the form of the answer, every fact check with the two words
that may answer it. Source: the paper's task figure (ARIG asks for what sounds and its box in 0..1).
The wordings are our own.
"""

_BOX = "Give [object, x_left, y_top, x_right, y_bottom]."
_TIME = "Give [object, start, end]."

_ARIG = {
    "train": (
        "Show what makes the sound.",
        "Point to whatever you hear in the recording.",
        "Listen first, then draw a box around the source of the noise.",
        "Where in the picture is the thing that is audible?",
        "Which object could have produced this audio, and where does it lie?",
        "Mark the part of the image that the sound comes from.",
        "Locate every sounding object.",
        "Somewhere in this scene something is making itself heard; find it.",
        "Name the source of the sound and say where it is; coordinates run from 0 to 1.",
        "Use your ears to decide what to outline in this photo.",
        "Put a frame around the thing responsible for what you are hearing.",
        "Of all that is visible, pick out what can also be heard.",
        "Tell me what is sounding and in which region of the view.",
        "Match the audio to an object in the image; each number is a fraction of the image's size.",
        "I hear something. Can you show me where it is?",
        "Ground the audio clip in the picture.",
        "Identify what you hear and mark off the area that it fills.",
        "Look for the origin of this noise; measure from the top left corner, in 0 to 1.",
        "What do you both hear and see, and where exactly?",
        "Trace the sound back to its place in the photograph.",
        "Box in the object whose sound is playing.",
        "Report the position of whoever or whatever is sounding; the picture is 1 wide and 1 high.",
        "Try to spot the maker of this noise.",
        "Given the audio, which region of the image belongs to it?",
        "Help me find the audible object.",
        "Work out which visible thing gives off this sound and state its location.",
    ),
    "test": (
        "Where is the thing that you hear?",
        "Find the object behind this audio and outline it.",
        "Indicate the spot in the image from which the noise originates; use numbers from 0 to 1.",
        "The clip plays a sound made by something in view. Locate it.",
        "Draw a rectangle about the sound's source.",
        "Which part of the photo is making noise?",
        "Say what is audible here and give the bounds of its place in the picture.",
    ),
}

_IGATL = {
    "train": (
        "When is it heard?",
        "At what time does the thing in the picture make its sound?",
        "Look at the image, then tell me the moments at which that object is audible.",
        "Mark the stretch of the recording that belongs to what you see.",
        "From which second to which does the pictured object sound?",
        "The photo shows something. Find it in the audio.",
        "Locate in time the noise made by what is shown here.",
        "Listen for whatever the image depicts and note when it begins and stops.",
        "How long, and from when on, can the visible object be heard?",
        "State the start and the finish, in seconds, of the sound that fits this picture.",
        "Which part of the clip goes with the image?",
        "Report every period during which the thing in view is making itself heard.",
        "I see this object. When do I hear it?",
        "Say between what times the sound of the shown object occurs.",
        "Pick out the interval of audio that matches the photograph.",
        "Use the picture to decide what to listen for, and give its timing.",
        "Time the sound of whatever is in front of the camera; count in seconds.",
        "During which seconds does the clip contain the noise of something in the scene?",
        "Find the onset and the offset of the sound that the picture suggests.",
        "What you see also sounds at some point; at which?",
        "Segment the recording: where does the object of the image come in, and where does it end?",
        "Note down when the source in this photo is active.",
        "Measure, from the beginning of the recording, when the object in sight is sounding.",
        "Spot the audible moments of the item pictured.",
        "On the time line of this clip, where would you place the sound of what is visible?",
        "State when the visible thing becomes audible and when it falls silent, in seconds.",
    ),
    "test": (
        "When does what you see make a sound?",
        "Between which seconds is the object of the photo audible?",
        "Find the passage of the audio in which the pictured thing can be heard.",
        "Tell the start and end time of the noise that belongs to this image.",
        "Watch the scene, listen to the clip, and say at what moment the two agree.",
        "Which seconds of the recording are filled by the noise of the shown source?",
        "Determine the time span of the visible object's sound.",
    ),
}

_AVFACT1 = {
    "train": (
        "What is in {box} is heard. True or False?",
        "The sound comes from the object in {box}. True or False?",
        "Check this claim: the thing inside {box} makes the noise that you hear. True or False?",
        "Somebody says that the box {box} holds the source of the audio. Is that True or False?",
        "Look at {box} and listen. The two belong together. True or False?",
        "Is the statement that {box} frames what is sounding True or False?",
        "Decide whether the region {box} contains whatever can be heard: True or False?",
        "The recording was made by what you find in {box}. Answer True or False.",
        "If you look inside {box}, you see what you hear. True or False?",
        "You can hear the object marked by {box}. Is this True or False?",
        "Judge the following. The area {box} shows the origin of this sound. True or False?",
        "The clip plays the sound of the item at {box}. Reply with True or False.",
        "Does the object bounded by {box} produce this audio? Say True or False.",
        "In the picture, {box} is where the noise is coming from. True or False?",
        "Here is a box: {box}. Its content is audible in the clip. True or False?",
        "Verify that the part of the image within {box} matches the audio. True or False?",
        "Whatever occupies {box} is making the sound. State True or False.",
        "The object that I outlined at {box} sounds in this recording. True or False?",
        "Between these corners, {box}, lies the thing responsible for the noise. True or False?",
        "The audio fits what is depicted in {box}. Tell me: True or False?",
        "Fact check: the source of what is playing sits in {box}. True or False?",
        "Consider {box}. The thing there gives off this very sound. True or False?",
        "It is claimed that the noise in the clip stems from {box}. True or False?",
        "Would you agree that {box} surrounds an audible object? True or False?",
    ),
    "test": (
        "You hear what is in {box}. True or False?",
        "The object within {box} is the one that makes this sound. True or False?",
        "Please check: the audio belongs to the content of {box}. True or False?",
        "The noise originates at {box} in the image. Is that True or False?",
        "Take the thing framed by {box}; this clip lets you hear it. True or False?",
        "Someone drew {box} around the sound's source. Were they right? True or False?",
        "What the recording plays is to be seen in {box}. Answer with True or False.",
    ),
}

_AVFACT2 = {
    "train": (
        "Something seen is heard. True or False?",
        "The clip holds the sound of something in the picture. True or False?",
        "At least one visible object can also be heard. True or False?",
        "Check this claim: the audio belongs to something that the image shows. True or False?",
        "Picture and sound have a thing in common. Is that True or False?",
        "The source of the noise is in view. True or False?",
        "You can see what is making the sound. Answer True or False.",
        "Decide whether the recording contains anything that the photo depicts: True or False?",
        "Somebody says that this image and this audio go together. True or False?",
        "What is playing could come from an object in the scene. True or False?",
        "Is it True or False that the photograph shows a thing that is audible in the clip?",
        "Judge the following. The noise is made by one of the objects before you. True or False?",
        "Among the things pictured is one that you hear. Reply with True or False.",
        "Listen, then look: the origin of the sound is visible. True or False?",
        "Does the image show anything that sounds in this recording? Say True or False.",
        "Fact check: something in front of the camera is audible. True or False?",
        "The photo matches the audio. True or False?",
        "Whatever you hear is present in this view, at least in part. State True or False.",
        "There is an object here whose sound the clip plays. True or False?",
        "Verify that one of the depicted items produces this audio. True or False?",
        "The eyes and the ears are told of the same object. True or False?",
        "It is claimed that the sound can be traced to a thing in the image. True or False?",
        "Would you agree that the audio has its source in this scene? True or False?",
        "Compare what you see with what you hear; they share an object. True or False?",
    ),
    "test": (
        "You hear something that you see. True or False?",
        "The recording includes the sound of a thing shown in the image. True or False?",
        "Please check: the photo contains the maker of the noise. True or False?",
        "A visible item is the origin of this audio. Is this True or False?",
        "Look around the scene. Does any of it sound in the clip? True or False?",
        "Audio and image agree on some object. Answer with True or False.",
        "The thing that makes this sound appears in the picture. True or False?",
    ),
}

_AVFACT3 = {
    "train": (
        "What is in {box} is heard from {start} to {end}. True or False?",
        "Between {start} and {end} seconds the object in {box} makes a sound. True or False?",
        "Check this claim: the thing inside {box} is audible from {start} to {end}. True or False?",
        "Listen from {start} to {end}. The noise comes from {box}. True or False?",
        "The source at {box} sounds within the interval {start} to {end}. Is that True or False?",
        "From second {start} to second {end} you can hear what {box} shows. True or False?",
        "Somebody says that {box} frames what sounds during {start} to {end}. True or False?",
        "Look at {box}: its content is making noise between {start} and {end}. True or False?",
        "Decide on True or False: the item in {box} is sounding from {start} to {end}.",
        "The clip, from {start} to {end}, plays the sound of the object at {box}. True or False?",
        "In the seconds {start} to {end} the region {box} gives off sound. Answer True or False.",
        "Judge the following. From {start} until {end}, {box} is to be heard. True or False?",
        "Whatever occupies {box} can be heard in the span {start} to {end}. True or False?",
        "Take the time from {start} to {end} and the box {box}: they match. True or False?",
        "Does the object within {box} sound between {start} and {end}? Say True or False.",
        "Fact check: {box} holds the origin of the audio of {start} to {end}. True or False?",
        "It is claimed that the thing in {box} sounds at some time in {start} to {end}. "
        "True or False?",
        "Play the part from {start} to {end}; the maker of a noise in it sits in {box}. "
        "True or False?",
        "Verify that the audio between {start} and {end} has its source at {box}. True or False?",
        "The outlined object, {box}, is active from {start} to {end}. Reply with True or False.",
        "Is it True or False that {box} shows something audible from {start} to {end}?",
        "Inside {box} is a thing whose sound falls between {start} and {end}. True or False?",
        "With your ear on {start} to {end}, you would notice what lies in {box}. True or False?",
        "During the passage {start} to {end} one hears the item marked {box}. State True or False.",
    ),
    "test": (
        "You hear what is in {box} from {start} to {end}. True or False?",
        "The object framed by {box} makes noise between {start} and {end}. True or False?",
        "Please check: from {start} to {end} the recording holds the sound of {box}. "
        "True or False?",
        "In the window {start} to {end}, the audio belongs to the content of {box}. True or False?",
        "The thing at {box} is sounding when the clip runs from {start} to {end}. "
        "Answer with True or False.",
        "Seek the object of {box} in the audio from {start} to {end}: it is there. True or False?",
        "Seconds {start} to {end} let you hear the object bounded by {box}. Is this True or False?",
    ),
}

_AVFACT4 = {
    "train": (
        "Something seen is heard from {start} to {end}. True or False?",
        "Between {start} and {end} seconds something in the picture sounds. True or False?",
        "Check this claim: a visible object is audible from {start} to {end}. True or False?",
        "Listen from {start} to {end}. The noise is made by a thing in view. True or False?",
        "In the interval {start} to {end} you can see what you hear. Is that True or False?",
        "The image shows the source of a sound that falls within {start} to {end}. True or False?",
        "Somebody says the photo and the audio of {start} to {end} go together. True or False?",
        "At some point from {start} to {end} one of the pictured objects is heard. True or False?",
        "Decide on True or False: the scene holds something that sounds from {start} to {end}.",
        "The part of the clip from {start} to {end} matches the image. True or False?",
        "What sounds from second {start} to {end} is visible in the still. True or False?",
        "Judge the following. What plays from {start} to {end} is depicted here. True or False?",
        "Does anything in the photograph make noise between {start} and {end}? Say True or False.",
        "Fact check: during {start} to {end} an object before the camera is audible. "
        "True or False?",
        "It is claimed that the audio from {start} to {end} stems from this scene. True or False?",
        "Look at the picture; its sound is there in the seconds {start} to {end}. True or False?",
        "Verify that a depicted item can be heard between {start} and {end}. True or False?",
        "The stretch from {start} to {end} contains the sound of something shown. "
        "Answer True or False.",
        "Is it True or False that you hear a thing of this image from {start} to {end}?",
        "Eyes and ears meet the same object in the span {start} to {end}. True or False?",
        "Play {start} to {end} and you hear at least one thing that you see. "
        "Reply with True or False.",
        "Whoever or whatever is pictured gives off sound between {start} and {end}. True or False?",
        "There is a visible source for the recording's passage {start} to {end}. State True or "
        "False.",
        "Would you agree that the view explains what is heard from {start} to {end}? "
        "True or False?",
    ),
    "test": (
        "You hear something that you see from {start} to {end}. True or False?",
        "A thing in the image makes a sound between {start} and {end}. True or False?",
        "Please check: the clip's seconds {start} to {end} hold the noise of a visible object. "
        "True or False?",
        "From {start} to {end} the recording plays something that the photo shows. True or False?",
        "Take the window {start} to {end}: its audio has a source in this picture. "
        "Answer with True or False.",
        "Some object of the scene is audible when the time is {start} to {end}. "
        "Is this True or False?",
        "What the camera sees, the microphone catches within {start} to {end}. True or False?",
    ),
}

_CHOICE = {
    "train": (
        "{question} Choose from: {choices}.",
        "{question} The options are {choices}.",
        "{question} Answer with one of these: {choices}.",
        "Watch and listen, then pick an answer. {question} Possible answers: {choices}.",
        "{question} Select whichever is right: {choices}.",
        "Here is a question with several answers: {question} Which of them is correct: {choices}?",
        "Given the choices {choices}, answer this. {question}",
        "{question} One of the following is true: {choices}.",
        "Multiple choice: {question} Your options: {choices}.",
        "Use picture and sound to answer. {question} It is one out of {choices}.",
        "{question} Decide between {choices}.",
        "From the list {choices}, take the reply that fits. {question}",
        "{question} Say which applies: {choices}.",
        "Consider what is seen and heard. {question} You may reply with {choices}.",
        "{question} Only a single one is correct among {choices}.",
        "Look, listen, and tell me: {question} Candidates are {choices}.",
        "Answer the question by naming an item of this list. {question} List: {choices}.",
        "{question} I can think of {choices}. What do you say?",
        "Find the best answer. {question} Suggested answers: {choices}.",
        "The answer to what follows is among {choices}. {question}",
        "{question} Is it {choices}? Name the right one.",
        "Question: {question} Choices: {choices}. Answer:",
        "Pay attention to the clip and its picture. {question} Reply using one of {choices}.",
        "{question} Settle on the most fitting of {choices}.",
    ),
    "test": (
        "{question} Pick one of: {choices}.",
        "Which of {choices} answers this? {question}",
        "{question} You have these to choose between: {choices}.",
        "After watching and listening, answer. {question} Allowed answers: {choices}.",
        "{question} The correct reply is in this list: {choices}.",
        "Make your choice. {question} Alternatives: {choices}.",
        "With {choices} as the only replies, what would you say? {question}",
    ),
}

_WORD = {
    "train": (
        "{question} Answer in a word.",
        "{question} One word or two will do.",
        "{question} Keep it short.",
        "Reply with as few words as you can. {question}",
        "{question} No sentence, please, just the answer.",
        "Look and listen, then give a short answer. {question}",
        "{question} Name it without explaining.",
        "Give only the answer to this. {question}",
        "In a single word if possible: {question}",
        "{question} Be concise.",
        "Use the picture and the sound to answer in a word. {question}",
        "Question: {question} Short answer:",
        "{question} Your reply should be no longer than two words.",
        "I have a question about this scene: {question} A word is enough.",
        "{question} Do not write more than you must.",
        "From what you see and hear, say in brief: {question}",
        "{question} A plain word or number is what I want.",
        "Tell me quickly: {question}",
        "Watch closely, hear it out, and respond tersely. {question}",
        "{question} Leave out everything but the answer itself.",
        "Without giving reasons, answer this. {question}",
        "{question} State the answer and stop there.",
        "Consider both image and audio. {question} Put your answer in one or two words.",
        "{question} Respond with the bare answer.",
    ),
    "test": (
        "{question} Answer briefly.",
        "What is the short answer? {question}",
        "{question} Say it with one word, or two at most.",
        "Having seen and heard the clip, reply shortly. {question}",
        "{question} Skip the details.",
        "Answer, and add nothing else. {question}",
        "{question} The shortest right reply is best.",
    ),
}

_AVC = {
    "train": (
        "Describe what you see and hear.",
        "Write a caption for this clip.",
        "What is going on here, to the eye and to the ear?",
        "Tell me in a sentence what happens in picture and sound.",
        "Sum up the scene, including its sounds.",
        "Put into words everything that can be seen and heard.",
        "Explain what the image shows and what the audio holds.",
        "Give a short account of this scene and of the noises in it.",
        "How would you describe this to someone who can neither see nor hear it?",
        "Caption the video together with its sound track.",
        "Look at the picture, listen to the recording, and report.",
        "Say who or what is present and which sounds there are.",
        "Compose a description that covers both view and audio.",
        "What does this moment look like, and what does it sound like?",
        "Provide a summary of the audio-visual content.",
        "Paint the scene in words; do not forget what is audible.",
        "Narrate what takes place here.",
        "Which objects, actions and sounds make up this clip?",
        "Note down what the camera and the microphone have recorded.",
        "Characterise the scene by sight and by sound.",
        "I would like to know all about this video: its images as well as its noises.",
        "Turn this picture and its sound into a sentence.",
        "Share what you notice when you watch and listen.",
        "Outline the visible events and the accompanying audio.",
    ),
    "test": (
        "Say what is seen and heard.",
        "Give this video a caption that mentions its sounds.",
        "In your own words, what happens in the image and in the audio?",
        "Report on the scene: what is visible, and what can be heard?",
        "Write one sentence about the clip, its look and its sound.",
        "Depict what the picture presents and the recording plays.",
        "What would a viewer and listener observe here?",
    ),
}


def _ending(wordings: dict[str, tuple[str, ...]], form: str) -> dict[str, tuple[str, ...]]:
    """The wordings with the form of the answer at their end."""
    return {split: tuple(f"{text} {form}" for text in texts) for split, texts in wordings.items()}


PARAPHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "arig": _ending(_ARIG, _BOX),
    "igatl": _ending(_IGATL, _TIME),
    "avfact1": _AVFACT1,
    "avfact2": _AVFACT2,
    "avfact3": _AVFACT3,
    "avfact4": _AVFACT4,
    "choice": _CHOICE,
    "word": _WORD,
    "avc": _AVC,
}
